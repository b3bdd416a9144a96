"""Which arms escaped the cold start, decided by one rule and told in plain sentences.

Where a task has several kinds of problems, the rule is how many of them an arm has learned.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from components.methods import Method
from components.report.numbers import interval, percent
from components.report.results import LEARNED, ArmResults, Figures, Results, by_kind

# How far above the base model's maj@k a seed must come to have escaped. Out of a warm start there is nothing to escape
# from: there, any rise that the intervals can tell counts.
ESCAPE_GAIN = 0.2


class Verdict(StrEnum):
    """What became of one seed, by its maj@k and the base model's."""

    ESCAPED = "escaped"
    IMPROVED = "improved"  # the same, from a warm start
    MOVED = "moved"  # above the base model, but not out
    FROZEN = "frozen"  # the intervals cannot tell it from the base model
    FELL = "fell"  # below the base model


GOOD = (Verdict.ESCAPED, Verdict.IMPROVED)


@dataclass(frozen=True)
class Headline:
    """What a sweep showed: in a line, and in a few sentences."""

    title: str
    sentences: list[str]


def verdict(figures: Figures, base: Figures, start: str) -> Verdict:
    """Judge one seed; intervals that overlap say nothing."""
    ours, before = figures.maj_at_k, base.maj_at_k
    if ours.high < before.low:
        return Verdict.FELL
    if ours.low <= before.high:
        return Verdict.FROZEN
    if start == "warm":
        return Verdict.IMPROVED
    return Verdict.ESCAPED if ours.value - before.value >= ESCAPE_GAIN else Verdict.MOVED


def verdicts(arm: ArmResults, results: Results) -> list[Verdict]:
    """Judge every seed of an arm."""
    return [verdict(run.figures, results.base, results.start) for run in arm.runs]


def kinds_learned(arm: ArmResults, results: Results) -> list[int]:
    """How many kinds of problems each seed has learned."""
    return [sum(kind.learned for kind in by_kind(run.samples, results.kinds).values()) for run in arm.runs]


def kinds_range(arm: ArmResults, results: Results, to: str = " to ") -> str:
    """The least and the most kinds that a seed has learned: "2", or "2 to 3"."""
    low, high = min(counts := kinds_learned(arm, results)), max(counts)
    return str(low) if low == high else f"{low}{to}{high}"


def succeeded(arm: ArmResults, results: Results) -> bool:
    """Whether every seed did what there was to do: learn all kinds of problems, escape, or improve."""
    if results.kinds:
        return min(kinds_learned(arm, results)) == len(results.kinds)
    return all(found in GOOD for found in verdicts(arm, results))


def outcome(arm: ArmResults, results: Results) -> str:
    """An arm's verdict in a word or two: "escaped", "escaped in 3 of 5", or the most frequent of the others.

    Where there are kinds of problems, how many of them it learned: "2 of 4 kinds", "2 to 3 of 4 kinds".
    """
    if results.kinds:
        return f"{kinds_range(arm, results)} of {len(results.kinds)} kinds"
    found = verdicts(arm, results)
    good = [item for item in found if item in GOOD]
    if good and len(good) < len(found):
        return f"{good[0]} in {len(good)} of {len(found)}"
    return Counter(found).most_common(1)[0][0].value


def rule(results: Results) -> str:
    """The rule behind the verdicts, for the reader."""
    if results.kinds:
        return f"A kind of problem counts as learned where maj@{results.k} on it is at least {100 * LEARNED:.0f}%."
    others = "“frozen” cannot be told from it, “fell” lies below."
    if results.start == "warm":
        return f"A seed improved when the interval of its maj@{results.k} lies above the base model's; {others}"
    return (
        f"A seed escaped when its maj@{results.k} is at least {100 * ESCAPE_GAIN:.0f} points above the base model's and"
        f" their intervals do not overlap; “moved” lies above the base model by less, {others}"
    )


def headline(results: Results) -> Headline:
    """What happened, from the figures alone."""
    if results.kinds:
        return _headline_of_kinds(results)
    good = [arm for arm in results.ordered if succeeded(arm, results)]
    partly = [arm for arm in results.ordered if arm not in good and any(v in GOOD for v in verdicts(arm, results))]
    rest = [arm for arm in results.ordered if arm not in good and arm not in partly]
    sentences = [_best(results)]
    if good and len(results.arms) > 1:
        sentences.insert(0, f"{_sentence_start(named(good))} {_did(results)}{_every_seed(results)}.")
    sentences += [f"{arm.label} {outcome(arm, results)} seeds." for arm in partly]
    sentences += _left_behind(rest, results)
    if not good and not partly:
        sentences.append(_caution(results))
    return Headline(_title(results, good, partly), sentences + race(results))


def _headline_of_kinds(results: Results) -> Headline:
    kinds, where = len(results.kinds), f"on {results.task}"
    good = [arm for arm in results.ordered if succeeded(arm, results)]
    if len(results.arms) == 1:
        title = f"{results.arms[0].label} learned {outcome(results.arms[0], results)} of problems {where}"
    else:
        count = f"{len(good)} of {len(results.arms)} arms" if good else "No arm"
        title = f"{count} learned all {kinds} kinds of problems {where}"
    by_outcome: dict[str, list[ArmResults]] = {}
    for arm in sorted(results.ordered, key=lambda arm: -sum(kinds_learned(arm, results))):
        by_outcome.setdefault(outcome(arm, results), []).append(arm)
    told = [f"{_sentence_start(named(arms))} learned {found}." for found, arms in by_outcome.items()]
    return Headline(title, [_best(results), *told, *race(results)])


def named(arms: Sequence[ArmResults]) -> str:
    """Arms in a sentence, q listed by method: "GRPO, GARL at q = 0 and 0.25, and PAFT at q = 1"."""
    by_method = sorted(arms, key=lambda item: list(Method).index(item.arm.method))
    groups = []
    for method, members in groupby(by_method, key=lambda item: item.arm.method):
        qs = [item.arm.q_text for item in members if item.arm.q_text]
        groups.append(method.label + (f" at q = {_listed(qs)}" if qs else ""))
    return ", and ".join([", ".join(groups[:-1]), groups[-1]]) if len(groups) > 2 else " and ".join(groups)


def steps(results: Results) -> str:
    """How many steps the runs took, in words."""
    found = sorted({run.steps for arm in results.arms for run in arm.runs})
    count = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return f"{count} step{'s' if found[-1] > 1 else ''}"


def _title(results: Results, good: Sequence[ArmResults], partly: Sequence[ArmResults]) -> str:
    did, where = _did(results), f"on {results.task}"
    if len(results.arms) == 1:
        label = results.arms[0].label
        if partly:
            return f"{label} {outcome(results.arms[0], results)} seeds {where}"
        return f"{label} {did} {where}" if good else f"{label} {_did_not(results)} {where}"
    if not good and not partly:
        return f"No arm {did} {where}"
    if not good:
        return f"{len(partly)} of {len(results.arms)} arms {did} {where}, in some seeds only"
    count = f"{len(good)} of {len(results.arms)}"
    if len(good) == len(results.arms):
        count = "Both" if len(good) == 2 else f"All {len(good)}"
    return f"{count} arms {did} {where}" + (f", {len(partly)} more in some seeds" if partly else "")


def _did(results: Results) -> str:
    return "improved on the base model" if results.start == "warm" else f"escaped the {results.start} start"


def _did_not(results: Results) -> str:
    return "did not " + _did(results).replace("improved", "improve").replace("escaped", "escape")


def _every_seed(results: Results) -> str:
    seeds = len(results.arms[0].runs)
    return f" in {'both' if seeds == 2 else f'all {seeds}'} seeds" if seeds > 1 else ""


def race(results: Results) -> list[str]:
    """Which arms a race stopped and what it saved, in a sentence; none where there was no race."""
    ends = {arm.name: arm.runs[0].steps for arm in results.arms if arm.runs[0].stopped}
    if not ends:
        return []
    told = []
    for step in sorted(set(ends.values())):
        told.append(f"{named([arm for arm in results.ordered if ends.get(arm.name) == step])} at step {step}")
    runs = [run.steps for arm in results.arms for run in arm.runs]
    return [
        f"The race stopped {'; '.join(told)}: it took {sum(runs):,} steps of training, all arms to the end would have"
        f" taken {max(runs) * len(runs):,}."
    ]


def _best(results: Results) -> str:
    best = max(results.ordered, key=lambda arm: arm.figures.maj_at_k.value)
    figure, base = best.figures.maj_at_k, results.base.maj_at_k
    if not base.value and not any(run.figures.maj_at_k.value for arm in results.arms for run in arm.runs):
        return f"After {steps(results)} no problem is solved by majority: maj@{results.k} is 0, like the base model's."
    equals = [arm for arm in results.ordered if arm.figures.maj_at_k.value == figure.value]
    who, scores, their = f"The best arm, {best.label},", "scores", "its"
    if len(results.arms) == 1:
        who = best.label
    elif len(equals) > 1:
        who, scores, their = f"The best arms, {named(equals)},", "score", "their"
    middle = f" in {their} median seed" if len(best.runs) > 1 else ""
    return (
        f"{who} {scores} maj@{results.k} {percent(figure.value)} {interval(figure)}{middle} after {steps(results)};"
        f" the base model {percent(base.value)} {interval(base)}."
    )


def _left_behind(rest: Sequence[ArmResults], results: Results) -> list[str]:
    """One sentence for each way of not escaping."""
    endings = {
        Verdict.MOVED: "rose above the base model but did not escape",
        Verdict.FROZEN: "stayed frozen: their intervals overlap the base model's",
        Verdict.FELL: "fell below the base model",
    }
    sentences = []
    for kind, ending in endings.items():
        if members := [arm for arm in rest if outcome(arm, results) == kind]:
            ending = ending.replace("their intervals overlap", "its interval overlaps") if len(members) == 1 else ending
            sentences.append(f"{_sentence_start(named(members))} {ending}.")
    return sentences


def _caution(results: Results) -> str:
    return (
        f"That says what {steps(results)} did, not what more would do: the smaller P is at the start, the longer the"
        " escape takes, and a short run cannot tell a slow arm from a frozen one."
    )


def _sentence_start(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(items: Iterable[str]) -> str:
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last
