"""`thaw init`: a project of one's own, asked for on a terminal or told by options."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import FAILED, INTERRUPTED, UserError
from flows.options import Overrides
from flows.output import say_in

if TYPE_CHECKING:
    from tasks.new_project import Checked

OWN, PUBLISHED = "jsonl", ("finqa", "hotpotqa", "musique")
EMBEDDED = "embedded"


def init(
    folder: Annotated[Path, typer.Argument(help="Where the project goes.")] = Path(),
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your questions: a .jsonl, .json, .csv or .parquet file; or the folder of a published data set."
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="FIELD", help="What the file calls a question.")] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="What it calls the final answer; a field may lie in another: a.b."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="What it calls the kind of a question, to have figures for each."),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Another file, of held-out questions; otherwise a tenth of the first is held out."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A Hugging Face model's folder, a repository on the hub, or `embedded`.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(help="jsonl for your own questions; finqa, hotpotqa or musique for a folder of that data set."),
    ] = OWN,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a project that is there.")] = False,
) -> None:
    """Make a project of your own: settings with a comment each, your questions, and the pipeline.

    Looks at data and model before it writes anything: how many questions there are and why some are left out, answers
    that look wrong, whether training fits this machine. Asks for what no option tells, where it runs on a terminal.

    [dim]thaw init mine
    thaw init mine --data questions.jsonl --question question --answer answer --model ~/models/Qwen3-0.6B
    thaw init mine --task finqa --data raw/finqa --model Qwen/Qwen3-0.6B --set train.steps=400[/dim]
    """
    from components.own_data import Columns
    from tasks.new_project import Wanted, check_free, checked, write_project

    check_free(folder, force=force)
    if task not in (OWN, *PUBLISHED):
        raise UserError(f"there is no task '{task}'; write {OWN}, {', '.join(PUBLISHED)}.")
    data = Path(_existing(str(data)) if data else _ask("data", "A file of questions and answers", _existing))
    columns = None
    if task == OWN:
        if data.is_dir():
            raise UserError(f"{data} is a folder; name a file, or say whose it is: --task finqa, hotpotqa or musique.")
        question, answer = _fields(data, question, answer)
        columns = Columns(question, answer, kind)
    model = model or _ask("model", "The model's folder, its repository on the hub, or `embedded`", _usable)
    wanted = Wanted(folder, task, data, _absolute(model), columns, test, overrides or [])
    typer.echo("Looking at data and model ...", err=True)
    with checked(wanted) as (found, lines):
        _show(found)
        if _terminal() and not typer.confirm(f"Write the project to {folder}?", default=True, err=True):
            raise typer.Exit(FAILED)
        written = write_project(wanted, found.settings, lines)
    typer.echo(f"written: {', '.join(map(str, written))}")
    enter = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    typer.echo(f"next:    {enter}thaw probe      would RL stall here, and which arm gets out? Then `thaw sweep`.")


def _show(found: "Checked") -> None:
    from flows.prepared import told

    for line in [*found.read, *(told(split, facts) for split, facts in found.splits.items()), found.fits]:
        typer.echo(line)
    for doubt in found.doubts:
        say_in("yellow", f"look:    {doubt}")


def _fields(data: Path, question: str | None, answer: str | None) -> tuple[str, str]:
    """The names of the two columns, asked for where they are not told."""
    from components.own_data import field_names

    known = field_names(data)
    listed = f"{data} has {', '.join(known)}"

    def of_file(text: str) -> str:
        if text not in known:
            raise UserError(f"there is no field '{text}'; {listed}.")
        return text

    question = question or _ask(
        "question", f"{listed}. Which is the question", of_file, _guess(known, "question", "prompt")
    )
    return question, answer or _ask(
        "answer", "And which is the final answer", of_file, _guess(known, "answer", "answers")
    )


def _guess(known: list[str], *names: str) -> str | None:
    return next((name for name in names if name in known), None)


def _ask(option: str, text: str, check: Callable[[str], str], default: str | None = None) -> str:
    """A question on the terminal, asked again until the answer can be used.

    Raises:
        UserError: there is no terminal to ask on.
    """
    if not _terminal():
        raise UserError(
            f"--{option} is missing, and there is no terminal to ask on; `thaw init --help` lists all options."
        )
    while True:
        try:
            return check(str(typer.prompt(text, default=default, err=True)).strip())
        except typer.Abort:
            raise typer.Exit(INTERRUPTED) from None
        except UserError as error:
            say_in("yellow", str(error))


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI")


def _existing(text: str) -> str:
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}.")
    return str(path)


def _usable(text: str) -> str:
    from tasks.new_project import check_local_model

    check_local_model(_absolute(text))
    return text


def _absolute(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() and model != EMBEDDED else model
