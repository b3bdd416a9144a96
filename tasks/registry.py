"""What is in the model registry: versions side by side, compared in pairs, and promoted."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from components.config import EvaluationSettings, PromoteSettings
from components.errors import UserError
from components.evaluation.compare import Comparison, compare
from components.evaluation.gate import gate
from components.evaluation.metrics import Estimate
from components.report.comparison import Row
from components.report.reading import read_samples
from components.report.results import Samples
from components.tracking import promotion
from components.tracking.registry import EXAMPLES_TAG, Registry
from components.tracking.version import Version

VALIDATION = "validation"
MAJORITY = re.compile(r"(?P<set>[^/]+)/maj_at_(?P<k>[0-9]+)")


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate, in a sentence."""

    promoted: bool
    told: str


def versions_table(versions: Sequence[Version], on: str) -> Table:
    """Versions, best first: by maj@k on the test set `on`, and by validation where there is no such figure.

    Start and seed stand in the title where all versions have the same.
    """
    of = {tag: sorted({version.tags.get(tag, "?") for version in versions}) for tag in ("start", "seed")}
    differ = [tag for tag, values in of.items() if len(values) > 1]
    title = f"Registered checkpoints, percent: of {on}" + ("" if on == VALIDATION else f", or (of {VALIDATION})")
    title += "".join(f"; {tag} {values[0]}" for tag, values in of.items() if tag not in differ)
    table = Table(title=escape(title), box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("model", "arm", *differ, "step"):
        table.add_column(heading, no_wrap=True)
    figures = figure_names(versions, (on, VALIDATION))
    for figure in figures:
        table.add_column(_shown(figure), justify="right", no_wrap=True)
    for version in sorted(versions, key=lambda version: _rank(version, on)):
        tags = version.tags
        table.add_row(
            escape(version.reference + "".join(f" @{alias}" for alias in version.aliases)),
            escape(version.arm),
            *(escape(tags.get(tag, "?")) for tag in differ),
            str(version.step),
            *(_figure(version, name, on) for name in figures),
        )
    return table


def named_versions(registry: Registry, references: Sequence[str]) -> list[Version]:
    """The named versions, or all.

    Raises:
        UserError: nothing is registered, or not what was named.
    """
    versions = [registry.find(reference) for reference in references] or registry.versions()
    if not versions:
        raise UserError("the registry is empty; `thaw sweep` or `thaw train` fills it.")
    return versions


def worth_showing(versions: Sequence[Version], on: str) -> list[Version]:
    """The last version of every arm, and every version with an alias: champion, candidate, best.

    The last is the newest that was evaluated on the test set `on`, or the newest where none was.
    """
    last: dict[tuple[str, ...], Version] = {}
    for version in sorted(versions, key=lambda item: (bool(_majorities(item, on)), item.created, item.version)):
        last[version.name, version.arm, version.tags.get("start", "?")] = version
    return [version for version in versions if version.aliases or version in last.values()]


def figure_names(versions: Sequence[Version], test_sets: Sequence[str]) -> list[str]:
    """p_at_1, p_at_k and maj_at_k, for every k that a version was evaluated with on these test sets."""
    ks = sorted({k for version in versions for name in test_sets for k in _majorities(version, name)})
    return list(dict.fromkeys(["p_at_1", *(f"{name}_at_{k}" for k in ks for name in ("p", "maj"))]))


def page_rows(versions: Sequence[Version], on: str) -> tuple[list[Row], list[str]]:
    """What a page shows of the versions that were evaluated on a test set, best first, and the names of the figures.

    Raises:
        UserError: none of them was.
    """
    evaluated = sorted((version for version in versions if _majorities(version, on)), key=lambda item: _rank(item, on))
    if not evaluated:
        raise UserError(f"none of these versions was evaluated on '{on}'; `thaw evaluate-registry` does it.")
    names = figure_names(evaluated, [on])
    rows = []
    for version in evaluated:
        found = {name: version.metrics.get(f"{on}/{name}") for name in names}
        ends = {name: [version.metrics.get(f"{on}/{name}{end}", value) for end in ("_low", "_high")]
                for name, value in found.items()}  # fmt: skip
        figures = {_shown(name): Estimate(value, *ends[name]) for name, value in found.items() if value is not None}
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        rows.append(Row(version.reference + aliases, version.arm, version.tags.get("seed", "?"), version.step, figures))
    return rows, [_shown(name) for name in names]


def compare_versions(
    registry: Registry, first: Version, second: Version, on: str, settings: EvaluationSettings
) -> Comparison:
    """Compare what two versions answered to the same examples; differences are the second's minus the first's.

    Raises:
        UserError: one was not evaluated on the test set `on`, or on other examples under that name.
    """
    samples = [_samples(registry, version, on) for version in (first, second)]
    if first.tags[EXAMPLES_TAG + on] != second.tags[EXAMPLES_TAG + on]:
        raise UserError(
            f"{first.reference} and {second.reference} were evaluated on different examples under the name '{on}';"
            " evaluate both on the same data, with --record and a new name."
        )
    return compare(*samples, settings)


def promote(registry: Registry, reference: str, settings: PromoteSettings, evaluation: EvaluationSettings) -> Outcome:
    """Make a version its model's champion if it passes the gate, and write to it why or why not.

    It is compared with the champion on every test set that the champion has figures of. The first champion has nobody
    to be compared with; it must have been evaluated all the same.

    Raises:
        UserError: there is no such version, or it was not evaluated on one of these test sets.
    """
    version = registry.find(reference)
    before = promotion.champion(registry, version.name)
    if before is not None and before.version == version.version:
        return Outcome(True, f"{version.reference} is the champion already.")
    _samples(registry, version, settings.test_set)
    registry.set_alias(version.name, promotion.CANDIDATE, version.version)
    if before is None:
        promotion.promote(registry, version, None, reason := "there was none to compare it with")
        return Outcome(True, f"{version.reference} is the champion of {version.name}: {reason}.")
    test_sets = {settings.test_set, *_test_sets(before)}
    comparisons = {name: compare_versions(registry, before, version, name, evaluation) for name in test_sets}
    decision = gate(comparisons, settings.test_set, settings.margin)
    if not decision.passed:
        promotion.refuse(registry, version, f"compared with {before.reference}: {decision.reason}")
        return Outcome(False, f"{before.reference} stays the champion: {decision.reason}.")
    promotion.promote(registry, version, before, decision.reason)
    return Outcome(True, f"{version.reference} takes the place of {before.reference}: {decision.reason}.")


def undo_promotion(registry: Registry, reference: str) -> str:
    """Give the title back to the champion before; returns a sentence that says so.

    Raises:
        UserError: the model has no champion, or the reference names another version.
    """
    name = re.split("[/@]", reference)[0]
    now = promotion.champion(registry, name)
    if name != reference and now is not None and registry.find(reference).version != now.version:
        raise UserError(f"the champion of {name} is {now.reference}; undo that one's promotion.")
    undone, again = promotion.undo(registry, name)
    after = f"{again.reference} is champion again" if again else f"{name} has no champion"
    return f"{undone.reference} is no longer champion; {after}."


def _samples(registry: Registry, version: Version, on: str) -> list[Samples]:
    with tempfile.TemporaryDirectory() as folder:
        return read_samples(registry.evaluation(version, on, Path(folder)) / "samples.jsonl")


def _test_sets(version: Version) -> list[str]:
    """What a version was evaluated on, but for the split that training validates on."""
    found = [tag.removeprefix(EXAMPLES_TAG) for tag in version.tags if tag.startswith(EXAMPLES_TAG)]
    return [name for name in found if name != VALIDATION]


def _shown(figure: str) -> str:
    return figure.replace("_at_", "@")


def _rank(version: Version, on: str) -> tuple[int, float]:
    for place, test_set in enumerate((on, VALIDATION)):
        if majorities := _majorities(version, test_set):
            return place, -majorities[max(majorities)]
    return 2, 0.0


def _majorities(version: Version, test_set: str) -> dict[int, float]:
    """The version's maj@k on a test set, by k."""
    found = {match: value for name, value in version.metrics.items() if (match := MAJORITY.fullmatch(name))}
    return {int(match["k"]): value for match, value in found.items() if match["set"] == test_set}


def _figure(version: Version, name: str, on: str) -> str:
    """The figure in percent; a majority's with its interval."""
    for test_set, shown in ((on, "{}"), (VALIDATION, "({})")):
        if (key := f"{test_set}/{name}") in version.metrics:
            value, low, high = (100 * version.metrics.get(key + end, float("nan")) for end in ("", "_low", "_high"))
            interval = f" [{low:.0f}, {high:.0f}]" if name.startswith("maj") else ""
            return shown.format(f"{value:.1f}{interval}")
    return "-"
