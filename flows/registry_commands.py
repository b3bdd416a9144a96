"""The commands around the model registry: compare, promote, lineage, evaluate-registry."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from components.config import load_settings
from components.errors import FAILED
from flows.options import PARAMS, Overrides, Params, TestData, quiet_prefect
from flows.output import AsJson, aside, print_json

if TYPE_CHECKING:
    from components.tracking.version import Version

Model = Annotated[str, typer.Argument(help="A registered version: NAME/3 or NAME@ALIAS.")]


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Registered versions, NAME/3 or NAME@ALIAS; all of them if none is named."),
    ] = None,
    on: Annotated[str, typer.Option(help="The test set, by the name its figures were recorded under.")] = "test",
    page: Annotated[Path | None, typer.Option(help="An HTML file for table and chart.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered checkpoint.")] = False,
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare registered checkpoints: their figures with intervals, and how sure it is that one is better.

    Where several are named, the differences of the others from the first are taken in pairs, problem by problem.

    [dim]thaw compare                                the last version of every arm, champion, candidate and best
    thaw compare --all                          every registered checkpoint
    thaw compare thaw-skills/3 thaw-skills/21   these two, and their difference
    thaw compare --page comparison.html         table and chart as a page[/dim]
    """
    from rich.console import Console

    from components.report.comparison import write_page
    from components.report.tables import comparison_table
    from tasks.evaluation import registry
    from tasks.registry import compare_versions, named_versions, page_rows, versions_table, worth_showing

    found = registry()
    versions = named_versions(found, models or [])
    shown = versions if models or every else worth_showing(versions, on)
    comparisons = {}
    if models:
        settings = load_settings(params, overrides or []).evaluation
        first, *others = versions
        for other in others:
            comparisons[other.reference] = compare_versions(found, first, other, on, settings)
    if page is not None:
        write_page(page, on, *page_rows(shown, on), shown[0].reference, comparisons)
    if as_json:
        against = [{"first": shown[0].reference, "second": name, **asdict(of)} for name, of in comparisons.items()]
        print_json({"on": on, "versions": [_version(item) for item in shown], "comparisons": against})
        return
    console = Console()
    console.print(versions_table(shown, on))
    if len(shown) < len(versions):
        console.print(f"[dim]{len(versions) - len(shown)} more with --all[/]")
    for name, comparison in comparisons.items():
        console.print(comparison_table(comparison, shown[0].reference, name))
    if page is not None:
        typer.echo(f"page: {page}")


def _version(version: "Version") -> dict[str, Any]:
    """Its figures as fractions of 1, by TEST_SET/FIGURE."""
    names = {"model": version.reference, "arm": version.arm, "aliases": version.aliases}
    facts = {tag: version.tags.get(tag) for tag in ("task", "start", "seed")}
    made = {"step": version.step, "created": version.created, "mlflow_run_id": version.run_id}
    return names | facts | made | {"figures": version.metrics}


def promote(
    model: Model,
    undo: Annotated[bool, typer.Option("--undo", help="Give the title back to the champion before.")] = False,
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion if it is better than the present one, by a margin that is no accident; say why (not).

    Both answered the same problems. The gain in maj@k must reach promote.margin, its 95% interval must lie above zero,
    and on no other test set that the champion was evaluated on may the version be worse. Ends with status 1 if it stays
    as it is.

    [dim]thaw promote thaw-skills@best
    thaw promote thaw-skills --undo[/dim]
    """
    from tasks import registry
    from tasks.evaluation import registry as open_registry

    if undo:
        told = registry.undo_promotion(open_registry(), model)
        print_json({"promoted": False, "told": told}) if as_json else typer.echo(told)
        return
    settings = load_settings(params, overrides or [])
    outcome = registry.promote(open_registry(), model, settings.promote, settings.evaluation)
    print_json(outcome) if as_json else typer.echo(outcome.told)
    if not outcome.promoted:
        raise typer.Exit(FAILED)


def lineage(model: Model, as_json: AsJson = False) -> None:
    """Trace a version back to data and code, and look whether everything it names is there and is what it says.

    Ends with status 1 if something is not.

    [dim]thaw lineage thaw-skills@champion[/dim]
    """
    from rich.console import Console
    from rich.markup import escape

    from tasks.evaluation import registry
    from tasks.lineage import State
    from tasks.lineage import lineage as trace
    from tasks.workspace import project_root

    styles = {State.TRUE: "green", State.ABSENT: "yellow", State.FALSE: "bold red"}
    found = registry()
    with aside(as_json):
        facts = trace(found, model, project_root())
    reference = found.find(model).reference
    if as_json:
        print_json({"model": reference, "facts": facts})
    else:
        console = Console(soft_wrap=True)
        console.print(escape(reference))
        for fact in facts:
            state = f"[{styles[fact.state]}]{fact.state:8}[/]"
            console.print(f"  {fact.name:11}  {state}  {escape(fact.value)}  [dim]{escape(fact.note)}[/]")
    if any(fact.state is State.FALSE for fact in facts):
        raise typer.Exit(FAILED)


def evaluate_registry(
    models: Annotated[
        list[str] | None, typer.Argument(help="Registered versions; without any, champion, candidate and best.")
    ] = None,
    data: TestData = None,
    split: Annotated[str, typer.Option(help="train, validation or test; of a prepared folder.")] = "test",
    record: Annotated[str, typer.Option(help="The test set's name, under which the figures are kept.")] = "test",
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score registered versions on a new test set, and keep figures and samples with them.

    [dim]thaw evaluate-registry --data new.jsonl --record november
    thaw compare --on november[/dim]
    """
    load_settings(params, overrides or [])  # refuses a wrong one before anything is started
    quiet_prefect()
    from flows.parameters import Changes
    from flows.registry import evaluate_registry as flow
    from flows.serve import with_server
    from tasks.evaluation import registry

    registry()  # is there one? Asked before anything is started
    named = (override.partition("=") for override in overrides or [])
    changes = Changes.read({name.strip(): yaml.safe_load(value) for name, _, value in named})
    with aside(as_json), with_server():
        figures = flow(models or [], data, record, split, params, changes)
    if as_json:
        print_json({"test_set": record, "figures": figures})
