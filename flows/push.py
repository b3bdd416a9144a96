"""The commands around publishing: `thaw push` to the Hugging Face hub, and `thaw card`, what it would say there."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.publish import Publication

Model = Annotated[str, typer.Argument(help="A Hugging Face folder, or a registered version: NAME/3, NAME@ALIAS.")]
Repository = Annotated[str, typer.Argument(metavar="REPO", help="The repository on the hub: OWNER/NAME.")]
License = Annotated[
    str | None, typer.Option(help="What the card names, as the hub abbreviates it: apache-2.0, mit, ...")
]


def push(
    model: Model,
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; it is private else.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch, made if it is missing; main otherwise.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit; it names the model otherwise.")] = None,
    license: License = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and send nothing.")] = False,
) -> None:
    """Put a model on the Hugging Face hub, with a card that says how it was made and what it scores.

    The token is that of HF_TOKEN, the hub that of HF_ENDPOINT. Safetensors, JSON and text alone are published, in one
    commit, and a second push sends what has changed.

    [dim]thaw push thaw-skills@best me/skills --dry-run
    thaw push runs/mine/final me/skills --license apache-2.0[/dim]
    """
    from tasks.publish import publication

    found = publication(model, repository, license)
    message = message or found.message
    if dry_run:
        _show(found, f"{repository}, {revision or 'main'}, {'public' if public else 'private'}: {message}")
        return
    from components.publishing.upload import push as upload

    address = upload(
        found.folder, found.files, found.card, repository, public=public, revision=revision, message=message
    )
    typer.echo(f"{model} is at {address}")


def card(
    model: Model,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="The repository it speaks of: OWNER/NAME.")],
    license: License = None,
) -> None:
    """Print the model card that `thaw push` would publish; a README.md in the model's folder takes its place.

    [dim]thaw card runs/mine/final me/skills > README.md[/dim]
    """
    from tasks.publish import publication

    typer.echo(str(publication(model, repository, license).card), nl=False)


def _show(found: "Publication", where: str) -> None:
    typer.echo(f"{where}\n")
    for name, size in found.sizes.items():
        typer.echo(f"{size:>15,}  {name}")
    typer.echo(f"\n{found.card}", nl=False)
