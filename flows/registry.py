"""The flows around the model registry: registered versions on a new test set, and the champion's succession."""

from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from components.config import Settings, load_settings
from components.errors import UserError
from components.names import as_folder, check_name
from components.tracking.registry import Registry
from flows.options import BUILD, PARAMS
from flows.parameters import Changes
from tasks.evaluation import evaluate_model, registry
from tasks.inputs import find_examples
from tasks.lost_runs import NOTED
from tasks.registry import Outcome
from tasks.registry import promote as promote_version

SAME = Changes()
RIVALS = ("champion", "candidate", "best")


@flow(name="evaluate_registry", **NOTED)
def evaluate_registry(
    models: list[str] | None = None,
    data: Path | None = None,
    record: str = "test",
    split: str = "test",
    params: Path = PARAMS,
    changes: Changes = SAME,
) -> dict[str, dict[str, float]]:
    """Score registered versions on a test set; figures and samples are kept with each under the name `record`.

    models: NAME/VERSION or NAME@ALIAS each; without any the champion, the candidate and the best of the task's model.
    data: a prepared folder or a raw file of the task; the build's own data otherwise.

    A version that cannot be scored does not stop the others; the flow fails at the end and names it.
    """
    settings = load_settings(params, changes.overrides())
    check_name(record, "a test set")
    chosen = _chosen(registry(), models or [], settings)
    options = {"data": data, "record": record, "split": split}
    # One after the other: each takes all the memory that the engine's settings allow it.
    states = {name: score(settings, name, **options, return_state=True) for name in chosen}
    figures = {name: state.result() for name, state in states.items() if state.is_completed()}
    if figures:
        create_markdown_artifact(_markdown(figures), key="registry-evaluation", description=f"Figures on {record}")
    for state in states.values():
        state.result()  # raises what went wrong, if anything did
    return figures


@task(task_run_name="{model}", cache_policy=NO_CACHE)
def score(settings: Settings, model: str, *, data: Path | None, record: str, split: str) -> dict[str, float]:
    """Evaluate one registered version and keep the evaluation with it."""
    out = BUILD / "evaluations" / f"{as_folder(model)}-{record}"
    examples = find_examples(settings, data, split, BUILD, out)
    return evaluate_model(settings, model, examples, split=split, out=out, record=record)


@flow(name="promote", **NOTED)
def promote(model: str | None = None, params: Path = PARAMS, changes: Changes = SAME) -> Outcome:
    """Make a version champion if it passes the gate; that it does not is a result and no failure.

    model: NAME/VERSION or NAME@ALIAS; without it, the best of the task's model by validation.
    """
    settings = load_settings(params, changes.overrides())
    model = model or f"thaw-{settings.task.name}@best"
    outcome = promote_version(registry(), model, settings.promote, settings.evaluation)
    get_run_logger().info(outcome.told)
    create_markdown_artifact(outcome.told, key="promotion", description=f"{model}: promoted or not, and why")
    return outcome


def _chosen(found: Registry, models: Sequence[str], settings: Settings) -> list[str]:
    """The references of the versions to score, each version once."""
    name = f"thaw-{settings.task.name}"
    versions = [found.find(model) for model in models]
    if not models:
        versions = [version for version in found.versions(name) if set(RIVALS) & set(version.aliases)]
    if not versions:
        raise UserError(f"{name} has neither champion nor candidate nor best version; name the versions to score.")
    return list(dict.fromkeys(version.reference for version in versions))


def _markdown(figures: dict[str, dict[str, float]]) -> str:
    names = [name for name in next(iter(figures.values())) if not name.endswith(("_low", "_high"))]
    rows = [["version", *(name.replace("_at_", "@") for name in names)], ["---"] * (len(names) + 1)]
    for version, found in figures.items():
        cells = (f"{100 * found[name]:.1f} [{100 * found[f'{name}_low']:.1f}, {100 * found[f'{name}_high']:.1f}]"
                 for name in names)  # fmt: skip
        rows.append([version, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
