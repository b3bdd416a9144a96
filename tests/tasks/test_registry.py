"""Registered versions side by side, compared and promoted, in a real MLflow store."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from components.config import EvaluationSettings, PromoteSettings
from components.data.example import Example
from components.errors import UserError
from components.evaluation.compare import compare
from components.evaluation.evaluate import score, summarize
from components.report.comparison import write_page
from components.report.reading import read_samples
from components.tracking import promotion
from components.tracking.runs import Tracker
from components.tracking.version import Version
from tasks.registry import (
    compare_versions,
    named_versions,
    page_rows,
    promote,
    undo_promotion,
    versions_table,
)

EVALUATION = EvaluationSettings(samples=4, bootstrap=500, seed=0)
GATE = PromoteSettings(test_set="test", margin=0.05)

Register = Callable[..., Version]


@pytest.fixture
def register(tracker: Tracker, tmp_path: Path) -> Register:
    """Registers a version and keeps evaluations with it: register({"validation/p_at_1": 0.5}, test=0.9)."""

    def made(metrics: dict[str, float] | None = None, **test_sets: float) -> Version:
        folder = tmp_path / f"checkpoint-{len(tracker.registry.versions())}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        tags = {"estimator": "garl", "q": "0.75", "task": "skills", "start": "cold", "seed": "0"}
        with tracker.run("an arm") as run:
            version = run.register(folder, "thaw-skills", step=1, tags=tags, metrics=metrics or {})
        for name, accuracy in test_sets.items():
            version = evaluated(tracker, version, name, accuracy, tmp_path)
        return version

    return made


def evaluated(
    tracker: Tracker, version: Version, name: str, accuracy: float, folder: Path, *, examples: int = 60
) -> Version:
    """Keep invented samples, of which this share is right, on the examples that the test set's name stands for."""
    random = np.random.default_rng(version.version)
    questions = [Example(f"{name}-{number}", "?", ("right",), "") for number in range(examples)]
    answers = [["right" if random.random() < accuracy else "wrong" for _ in range(4)] for _ in questions]
    result = summarize([score(*pair, "skills") for pair in zip(questions, answers, strict=True)], EVALUATION)
    out = folder / f"{version.version}-{name}"
    out.mkdir(exist_ok=True)
    result.write(out / "samples.jsonl")
    (out / "evaluation.json").write_text(json.dumps({"figures": result.figures()}))
    return tracker.registry.add_evaluation(version, name, out, result.figures(), f"{name}, {examples} examples")


def champions(tracker: Tracker) -> tuple[int | None, str]:
    """Who is champion, and what the registered model remembers of those before."""
    now = promotion.champion(tracker.registry, "thaw-skills")
    tags = tracker.store.client.get_registered_model("thaw-skills").tags
    return now and now.version, tags.get("thaw.champions", "")


def told(tracker: Tracker, version: Version) -> str:
    """What is written to the version of its promotion, which its card must say as well."""
    tag = tracker.registry.find(version.reference).tags["thaw.promotion"]
    card = tracker.store.client.get_model_version(version.name, str(version.version)).description
    assert str(card).endswith(tag)
    return tag


def test_the_best_comes_first_and_held_out_figures_before_those_of_validation(tracker: Tracker, register: Register):
    figures = [
        {"validation/p_at_1": 0.9, "validation/maj_at_8": 0.9},
        {"test/p_at_1": 0.1, "test/maj_at_8": 0.2, "validation/maj_at_8": 0.9},
        {},
        {"test/p_at_1": 0.3, "test/maj_at_8": 0.4, "test/maj_at_8_low": 0.35, "test/maj_at_8_high": 0.45},
    ]
    for metrics in figures:
        register(metrics)
    table = versions_table(named_versions(tracker.registry, []), "test")
    columns = {str(column.header): list(map(str, column.cells)) for column in table.columns}
    assert list(columns) == ["model", "arm", "step", "p@1", "p@8", "maj@8"]
    assert str(table.title).endswith("; start cold; seed 0")
    assert columns["model"] == [f"thaw-skills/{number}" for number in (4, 2, 1, 3)]
    assert columns["arm"] == ["garl-q0.75"] * 4
    assert columns["p@1"] == ["30.0", "10.0", "(90.0)", "-"]
    assert columns["maj@8"][0] == "40.0 [35, 45]"
    assert columns["maj@8"][2].startswith("(90.0 [")
    assert columns["p@8"] == ["-"] * 4
    [named] = named_versions(tracker.registry, ["thaw-skills/3"])
    assert list(versions_table([named], "test").columns[0].cells) == ["thaw-skills/3"]


def test_what_versions_differ_in_is_a_column(register: Register):
    one = register(test=0.4)
    table = versions_table([one, replace(one, tags={**one.tags, "seed": "7"})], "test")
    assert [str(column.header) for column in table.columns][:4] == ["model", "arm", "seed", "step"]
    assert list(table.columns[2].cells) == ["0", "7"]
    assert str(table.title).endswith("; start cold")


def test_an_empty_registry_says_how_it_is_filled(tracker: Tracker):
    with pytest.raises(UserError, match="the registry is empty; `thaw sweep` or `thaw train` fills it"):
        named_versions(tracker.registry, [])


def test_two_versions_are_compared_by_what_they_answered(tracker: Tracker, register: Register, tmp_path: Path):
    first, second = register(test=0.4), register(test=0.9)
    found = compare_versions(tracker.registry, first, second, "test", EVALUATION)
    kept = [read_samples(tmp_path / f"{version.version}-test" / "samples.jsonl") for version in (first, second)]
    assert found == compare(*kept, EVALUATION)
    assert found.maj_at_k.difference.low > 0
    assert found.maj_at_k.second.value == second.metrics["test/maj_at_4"]

    other = register()
    with pytest.raises(UserError, match="thaw-skills/3 was not evaluated on 'test'; `thaw evaluate thaw-skills/3 --re"):
        compare_versions(tracker.registry, first, other, "test", EVALUATION)
    other = evaluated(tracker, other, "test", 0.5, tmp_path, examples=59)
    with pytest.raises(UserError, match="were evaluated on different examples under the name 'test'"):
        compare_versions(tracker.registry, first, other, "test", EVALUATION)


def test_the_page_shows_every_version_and_the_difference(tracker: Tracker, register: Register, tmp_path: Path):
    first, second, third = register(test=0.4), register(test=0.9), register()
    found = compare_versions(tracker.registry, first, second, "test", EVALUATION)
    rows, names = page_rows([first, second, third], "test")
    assert [row.name for row in rows] == ["thaw-skills/2", "thaw-skills/1"]
    assert names == ["p@1", "p@4", "maj@4"]
    page = tmp_path / "new" / "page.html"
    write_page(page, "test", rows, names, first.reference, {second.reference: found})
    text = page.read_text(encoding="utf-8")
    assert text.count("thaw-skills/2") >= 3  # in the chart, in the table, in the differences
    assert f"{100 * found.maj_at_k.difference.value:+.1f}" in text
    assert not re.search("https?:", text.replace("http://www.w3.org", ""))
    with pytest.raises(UserError, match="none of these versions was evaluated on 'november'"):
        page_rows([first, second], "november")


def test_a_champion_is_followed_by_one_that_is_better(tracker: Tracker, register: Register):
    registry = tracker.registry
    first, worse, better = register(test=0.5), register(test=0.3), register(test=0.95)
    assert promote(registry, first.reference, GATE, EVALUATION).promoted
    assert champions(tracker) == (1, "1")
    assert "as the first champion" in told(tracker, first)

    outcome = promote(registry, worse.reference, GATE, EVALUATION)
    assert not outcome.promoted
    assert outcome.told.startswith("thaw-skills/1 stays the champion: maj@4 on test")
    assert "Not promoted on" in told(tracker, worse)
    assert champions(tracker) == (1, "1")
    assert registry.find("thaw-skills@candidate").version == 2

    outcome = promote(registry, better.reference, GATE, EVALUATION)
    assert outcome.promoted
    assert "takes the place of thaw-skills/1: maj@4 on test" in outcome.told
    assert "in place of thaw-skills/1: maj@4 on test" in told(tracker, better)
    assert champions(tracker) == (3, "1 3")
    assert registry.find(better.reference).aliases == ("champion",)
    assert promote(registry, better.reference, GATE, EVALUATION).told == "thaw-skills/3 is the champion already."


def test_a_gain_on_one_test_set_does_not_pay_for_a_loss_on_another(
    tracker: Tracker, register: Register, tmp_path: Path
):
    before, after = register(test=0.3, november=0.95), register(test=0.95)
    promote(tracker.registry, before.reference, GATE, EVALUATION)
    with pytest.raises(UserError, match="thaw-skills/2 was not evaluated on 'november'"):
        promote(tracker.registry, after.reference, GATE, EVALUATION)
    evaluated(tracker, after, "november", 0.2, tmp_path)
    outcome = promote(tracker.registry, after.reference, GATE, EVALUATION)
    assert not outcome.promoted
    assert outcome.told.endswith("it is worse on november.")
    assert champions(tracker) == (1, "1")


def test_promotions_are_undone_one_by_one(tracker: Tracker, register: Register):
    registry = tracker.registry
    for accuracy in (0.1, 0.5, 0.95):
        assert promote(registry, register(test=accuracy).reference, GATE, EVALUATION).promoted
    assert champions(tracker) == (3, "1 2 3")
    with pytest.raises(UserError, match="the champion of thaw-skills is thaw-skills/3; undo that one's"):
        undo_promotion(registry, "thaw-skills/2")
    assert undo_promotion(registry, "thaw-skills/3") == (
        "thaw-skills/3 is no longer champion; thaw-skills/2 is champion again."
    )
    assert champions(tracker) == (2, "1 2")
    assert told(tracker, registry.find("thaw-skills/3")).endswith("thaw-skills/2 is champion again")
    assert undo_promotion(registry, "thaw-skills@champion").endswith("thaw-skills/1 is champion again.")
    assert undo_promotion(registry, "thaw-skills") == (
        "thaw-skills/1 is no longer champion; thaw-skills has no champion."
    )
    assert champions(tracker)[0] is None
    with pytest.raises(UserError, match="thaw-skills has no champion; there is no promotion to undo"):
        undo_promotion(registry, "thaw-skills")


@pytest.mark.parametrize("crash", ["_remember", "set_alias"])
@pytest.mark.parametrize("undoing", [False, True])
def test_a_promotion_that_is_interrupted_has_not_happened_or_is_complete(
    tracker: Tracker, register: Register, monkeypatch: pytest.MonkeyPatch, crash: str, undoing: bool
):
    """Whatever was written before the alias moved, the next promotion and the next undo do the right thing."""
    registry = tracker.registry
    first, second, third = register(test=0.1), register(test=0.5), register(test=0.95)
    promotion.promote(registry, first, None, "a reason")
    promotion.promote(registry, second, first, "a reason")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    change = partial(promotion.undo, registry, "thaw-skills")
    if not undoing:
        change = partial(promotion.promote, registry, third, second, "a reason")
    with monkeypatch.context() as broken:
        broken.setattr(promotion if crash == "_remember" else type(registry), crash, stop)
        with pytest.raises(KeyboardInterrupt):
            change()
    done = undoing and crash == "_remember"  # there the list is shortened after the alias
    assert champions(tracker)[0] == (1 if done else 2)
    now = registry.find("thaw-skills@champion")
    promotion.promote(registry, third, now, "a reason")
    assert champions(tracker) == (3, "1 3" if done else "1 2 3")
    promotion.undo(registry, "thaw-skills")
    assert champions(tracker) == (now.version, "1" if done else "1 2")


def test_a_champion_that_was_chosen_by_hand_is_respected(tracker: Tracker, register: Register):
    registry = tracker.registry
    first, second, third = register(test=0.1), register(test=0.5), register(test=0.95)
    promotion.promote(registry, first, None, "a reason")
    registry.set_alias("thaw-skills", "champion", second.version)  # as in MLflow's page
    with pytest.raises(UserError, match="thaw-skills/2 became the champion of thaw-skills meanwhile; run again"):
        promotion.promote(registry, third, first, "a reason")
    assert promote(registry, third.reference, GATE, EVALUATION).promoted
    assert champions(tracker) == (3, "1 2 3")
