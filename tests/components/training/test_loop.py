"""Whole runs, small: what they leave behind, what moves in them, and that one seed repeats them."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from components.config import Settings
from components.data.skills import KINDS, gold_answer
from components.data.split_files import load_split
from components.errors import UserError
from components.evaluation.evaluate import Evaluation
from components.evaluation.metrics import Estimate
from components.objective.commitment import adaptive
from components.policy.markers import Markers
from components.policy.model import load_tokenizer
from components.rollout.engine import Peers, Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.tracking.runs import Tracker
from components.training import loop
from components.training.record import TrainingRecord
from tasks.inputs import make_data
from tests.components.training.runs import ARM, Experiment, Reference, curve, figures, files, repeatable, switches
from tests.conftest import small_settings

# One run


def test_a_run_leaves_checkpoints_the_best_of_them_curves_and_a_record(
    experiment: Experiment, reference: Reference
) -> None:
    out, record = reference.out, reference.record
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "curves.csv", "final", "train.json"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-2", "step-4"]
    assert TrainingRecord(**json.loads((out / "train.json").read_text())) == record
    assert (record.arm, record.seed, record.steps) == (ARM, 0, 4)
    # The base model solves nothing, so that both checkpoints are equally good.
    assert (record.best_step, record.validation) == (4, 0)
    assert files(out / "final") == files(out / "checkpoints" / "step-4")
    weights = [files(folder)["model.safetensors"] for folder in (experiment.base, *(out / "checkpoints").iterdir())]
    assert len(set(weights)) == 3

    rows = list(csv.DictReader((out / "curves.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["validation/maj_at_4"] for row in rows] == ["", "0.0", "", "0.0"]
    assert all(0 < float(row["train/p_estimate"]) < 1e-6 for row in rows)
    # The trainer's model is the sampler's: nothing but rounding lies between their log-probabilities.
    assert all(float(row["mismatch/max_abs"]) < 1e-4 for row in rows)


def test_mlflow_has_the_curves_and_every_checkpoint(reference: Reference) -> None:
    tracker, record = reference.tracker, reference.record
    found = figures(tracker, record.mlflow_run_id)
    for row in csv.DictReader((reference.out / "curves.csv").open()):
        for name, value in row.items():
            assert name == "step" or not value or (int(row["step"]), float(value)) in found[name]
    run = tracker.store.client.get_run(record.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["settings.train.steps"] == "4"
    assert run.inputs.dataset_inputs[0].dataset.digest == record.identity["data"]

    versions = tracker.registry.versions("thaw-skills", {"estimator": "garl", "q": "0.75", "seed": "0"})
    assert [version.step for version in versions] == [2, 4]
    assert record.model_version == versions[1].version
    for version in versions:
        assert version.run_id == record.mlflow_run_id
        assert version.metrics["validation/maj_at_4"] == 0
        assert files(tracker.registry.download(version.reference)) == files(
            reference.out / "checkpoints" / f"step-{version.step}"
        )


def test_the_weights_of_a_checkpoint_are_one_file_in_the_run_and_in_mlflow(reference: Reference) -> None:
    registry, final = reference.tracker.registry, reference.out / "final"
    for version in registry.versions("thaw-skills"):
        checkpoint = reference.out / "checkpoints" / f"step-{version.step}"
        stored = registry.download(version.reference)
        places = [checkpoint, stored, *([final] if version.step == reference.record.best_step else [])]
        assert all((place / "model.safetensors").samefile(stored / "model.safetensors") for place in places)
        assert (stored / "model.safetensors").stat().st_nlink == len(places)
        assert (stored / "config.json").stat().st_nlink == 1  # which somebody may edit


def test_validation_tells_log_p_of_the_gold_answers(reference: Reference) -> None:
    validated = reference.record.validated
    assert list(validated) == ["2", "4"]
    rows = list(csv.DictReader((reference.out / "curves.csv").open(encoding="utf-8")))
    for step, found in validated.items():
        row = rows[int(step) - 1]
        assert len(found["right"]) == len(found["log_p"]) == 8
        assert float(row["validation/maj_at_4"]) == np.mean(found["right"])
        assert float(row["validation/log_p"]) == pytest.approx(np.mean(found["log_p"]))
        assert all(value is not None and value < 0 for value in found["log_p"])


def test_rollouts_of_the_first_and_the_last_validation_are_kept(reference: Reference) -> None:
    record = reference.record
    assert list(record.shown) == ["2", "4"]
    early, late = record.shown.values()
    assert [item["id"] for item in early] == [item["id"] for item in late]
    assert len({item["prompt"] for item in early}) == len(early) == 6
    for item, solved in zip(late, (found["right"] is not None for found in late), strict=True):
        assert solved == (item["share"] > 0)
        rationale, _ = item["wrong"]
        assert "</think>" in rationale
    assert record.finished is not None
    assert record.finished.startswith("20")


def test_a_table_of_rollouts_can_be_read(experiment: Experiment, reference: Reference, tmp_path: Path) -> None:
    client = reference.tracker.store.client
    [entry] = client.list_artifacts(reference.record.mlflow_run_id, "rollouts")
    assert entry.path == "rollouts/step-1.csv"  # every 20 steps
    path = client.download_artifacts(reference.record.mlflow_run_id, entry.path, str(tmp_path))
    with Path(path).open(encoding="utf-8", newline="") as file:  # rationales may hold any character
        rows = list(csv.DictReader(file))
    assert len(rows) == 16  # 4 examples with 4 rollouts each, fewer than a table holds
    answers = {row["id"]: row["answers"][0] for row in load_split(experiment.data, "train").to_list()}
    for row in rows:
        assert row["rationale"].endswith("</think>")
        assert row["answer"] == answers[row["example"]] + "<end>"
        assert 0 < float(row["w"]) < 1e-6
        assert float(row["path"]) > 0
    assert len({row["example"] for row in rows}) == 4


def test_a_sampler_that_was_left_behind_ends_the_run(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler gets a copy of the model, and the weights of the fourth step never come."""
    settings = small_settings(
        "train.steps=10", "train.validate_every=10", "train.learning_rate=0.01", "train.adam_epsilon=1.0e-8",
        "train.max_mismatch=1.0e-4",
    )  # fmt: skip
    calls = iter(range(100))

    def copied(
        _: Settings, policy: PreTrainedModel, _folder: Path, markers: Markers, _peers: Peers
    ) -> TransformersEngine:
        return TransformersEngine(deepcopy(policy), markers, batch_rollouts=64)

    def forgotten(engine: TransformersEngine, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        if next(calls) != skipped:
            load_weights(engine, weights)

    load_weights = TransformersEngine.load_weights
    monkeypatch.setattr(loop, "open_engine", copied)
    monkeypatch.setattr(TransformersEngine, "load_weights", forgotten)
    skipped = -1
    replace(experiment, settings=settings).train(tmp_path / "kept up", tracker)
    calls, skipped = iter(range(100)), 3
    with pytest.raises(UserError, match=r"step 4: .* the engine still has the weights of an earlier step"):
        replace(experiment, settings=settings).train(tmp_path / "left behind", tracker)


def test_adapters_are_sampled_from_in_place_and_saved_merged(
    experiment: Experiment, tracker: Tracker, tmp_path: Path
) -> None:
    """The sampler's log-probabilities are the trainer's, adapters included, and a checkpoint is a plain model."""
    settings = small_settings("train.lora_rank=2", "train.learning_rate=0.01", "train.max_mismatch=1.0e-4")
    replace(experiment, settings=settings).train(tmp_path / "out", tracker)
    base, final = (load_file(folder / "model.safetensors") for folder in (experiment.base, tmp_path / "out" / "final"))
    assert base.keys() == final.keys()
    changed = {name for name in base if not torch.equal(base[name], final[name])}
    assert changed == {name for name in base if "proj" in name}


def test_the_best_checkpoint_becomes_final(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_as(monkeypatch, 0.5, 0.25)
    record = experiment.train(tmp_path / "out", tracker)
    assert (record.best_step, record.validation) == (2, 0.5)
    assert files(tmp_path / "out" / "final") == files(tmp_path / "out" / "checkpoints" / "step-2")
    assert tracker.registry.find(f"thaw-skills/{record.model_version}").step == 2


def score_as(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let validations find these shares of maj@k, one after the other and apart from chance."""
    summarize, left = loop.summarize, iter(scores)

    def scored(*arguments: Any, **options: Any) -> Evaluation:
        score = next(left)
        return replace(summarize(*arguments, **options), maj_at_k=Estimate(score, score, score))

    monkeypatch.setattr(loop, "summarize", scored)


def test_the_last_checkpoints_and_the_best_are_kept(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_as(monkeypatch, 0.25, 0.5, 0.25, 0.4)
    settings = small_settings("train.validate_every=1", "train.keep=1")
    record = replace(experiment, settings=settings).train(tmp_path / "out", tracker)
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir()) == ["step-2", "step-4"]
    assert record.best_step == 2
    assert len(tracker.registry.versions("thaw-skills")) == 4


@pytest.mark.parametrize("stop", [False, True])
def test_a_collapse_is_told_and_ends_the_run_if_set(
    stop: bool,
    experiment: Experiment,
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score_as(monkeypatch, 0.5, 0.05, 0.04, 0.3)
    settings = small_settings("train.validate_every=1", f"train.stop_on_collapse={str(stop).lower()}")
    record = replace(experiment, settings=settings).train(tmp_path / "out", tracker)
    told = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(told) == (1 if stop else 2)
    assert "validation 5% at step 2, after 50% at step 1" in told[0]
    assert (record.steps, record.best_step) == (2 if stop else 4, 1)


def test_grpo_without_a_success_leaves_the_base_model_as_it_was(
    experiment: Experiment, tracker: Tracker, tmp_path: Path
) -> None:
    experiment.train(tmp_path / "out", tracker, arm="grpo")
    rows = list(csv.DictReader((tmp_path / "out" / "curves.csv").open()))
    assert [row["train/groups_without_gradient"] for row in rows] == ["4.0"] * 4
    assert (tmp_path / "out/final/model.safetensors").read_bytes() == (
        experiment.base / "model.safetensors"
    ).read_bytes()


def test_grpo_rewards_the_exact_answer_of_a_turn_that_ended(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four rollouts are right: one is cut short before its end, and one has another format."""
    tokenizer = load_tokenizer(experiment.base)
    generate = TransformersEngine.generate

    def answered(engine: TransformersEngine, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling):
        groups = generate(engine, prompts, n, sampling)
        return [[rewrite(member, item) for member, item in enumerate(group)] for group in groups]

    def rewrite(member: int, item: Rollout) -> Rollout:
        letter, *digits = tokenizer.decode(item.prompt_ids).removesuffix("?")
        kind = next(name for name, kind in KINDS.items() if kind.letter == letter)
        right, other = (gold_answer("".join(digits), name) for name in (kind, "sort" if kind != "sort" else "reverse"))
        text = [right, right, other, f" {right} "][member]
        ids = tuple(tokenizer(text + "<end>")["input_ids"])
        logprobs = (*item.logprobs[: len(item.rationale_ids)], *([0.0] * len(ids)))
        reason = "length" if member == 1 else "stop"
        return replace(item, answer_ids=ids, logprobs=logprobs, finish_reason=reason)

    monkeypatch.setattr(TransformersEngine, "generate", answered)
    settings = small_settings("train.max_mismatch=100")  # the answers are not what the engine's log p belong to
    replace(experiment, settings=settings).train(tmp_path / "out", tracker, arm="grpo")
    for row in csv.DictReader((tmp_path / "out" / "curves.csv").open()):
        assert float(row["train/p_estimate"]) == 0.5
        assert float(row["train/groups_without_gradient"]) == 0


def test_every_epoch_is_another_order_of_all_examples(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six examples, four a step: the second step takes the rest of the first epoch and begins the next."""
    settings = small_settings("task.train=6", "task.validation=2", "train.steps=6")
    make_data(settings, tmp_path / "data")
    prompts = [row["prompt"] for row in load_split(tmp_path / "data", "train").to_list()]
    tokenizer, seen = load_tokenizer(experiment.base), []
    generate = TransformersEngine.generate

    def noted(engine: TransformersEngine, asked: Sequence[Sequence[int]], n: int, sampling: Sampling):
        if not sampling.answers:  # in training, not in validation
            seen.extend(map(tokenizer.decode, asked))
        return generate(engine, asked, n, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", noted)
    replace(experiment, settings=settings, data=tmp_path / "data").train(tmp_path / "out", tracker)
    epochs = [seen[first : first + 6] for first in range(0, 24, 6)]
    assert len(seen) == 24
    assert all(sorted(epoch) == sorted(prompts) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [prompts, *epochs]}) == 5


# What moves


def test_a_schedule_is_a_curve(experiment: Experiment, tracker: Tracker, tmp_path: Path) -> None:
    record = experiment.train(tmp_path / "out", tracker, arm="garl-q1to0")
    assert curve(tmp_path / "out", "train/q") == [1, 0.75, 0.5, 0.25]
    found = figures(tracker, record.mlflow_run_id)
    assert found["train/q"] == {(1, 1), (2, 0.75), (3, 0.5), (4, 0.25)}
    assert "train/log_p" not in found
    params = tracker.store.client.get_run(record.mlflow_run_id).data.params
    assert (params["method"], params["q"]) == ("garl", "1to0")
    [version] = tracker.registry.versions("thaw-skills", {"estimator": "garl", "q": "1to0"})[-1:]
    assert version.arm == "garl-q1to0"


def test_an_adaptive_commitment_is_a_curve_beside_what_it_follows(
    experiment: Experiment, tracker: Tracker, tmp_path: Path
) -> None:
    experiment.train(tmp_path / "out", tracker, arm="garl-qadaptive")
    q, log_p = (curve(tmp_path / "out", f"train/{name}") for name in ("q", "log_p"))
    # P differs from example to example: the mean of logs lies below the log of the mean
    assert log_p[0] < math.log(curve(tmp_path / "out", "train/p_estimate")[0]) < -10
    assert q[:2] == [1, adaptive(log_p[0])]
    assert all(step == before or step == adaptive(mean) for before, step, mean in zip(q, q[1:], log_p, strict=False))


def test_own_commitments_are_a_curve_of_their_mean(experiment: Experiment, tracker: Tracker, tmp_path: Path) -> None:
    experiment.train(tmp_path / "out", tracker, arm="garl-qeach")
    q = curve(tmp_path / "out", "train/q")
    assert all(0.5 < value < 1 for value in q)
    assert len(set(q)) == 4


@pytest.mark.usefixtures("unstable")
def test_a_change_of_phase_is_told_kept_and_a_curve(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = replace(experiment, settings=small_settings("train.steps=6"))
    record = longer.train(tmp_path / "out", tracker, arm="garl-paft-q0.75")
    assert curve(tmp_path / "out", "train/phase") == [0, 0, 0, 1, 1, 1]
    mean = sum(curve(tmp_path / "out", "train/p_estimate")[:3]) / 3
    reason = f"the mean P of 3 steps fell from {mean:.2g} to {mean:.2g}"
    assert switches(tracker, record) == {"thaw.switch.step-4": f"paft: {reason}"}
    told = [line for line in capsys.readouterr().err.splitlines() if "from here on" in line]
    assert told == [f"garl-paft-q0.75 seed 0, step 4: paft from here on, for {reason}"]
    # PAFT trains what it drew; GARL trains all.
    trained = curve(tmp_path / "out", "train/rollouts_trained")
    assert trained[:3] == [1, 1, 1]
    assert max(trained[3:]) < 1
    assert "train/q" not in figures(tracker, record.mlflow_run_id)


# The same again


@pytest.mark.parametrize("arm", [ARM, "paft-q0.75"])
def test_one_seed_gives_one_result_and_another_seed_another(
    arm: str, experiment: Experiment, tracker: Tracker, tmp_path: Path
) -> None:
    runs = [experiment.train(tmp_path / str(number), tracker, arm=arm, seed=number // 2) for number in range(3)]
    one, same, other = (files(tmp_path / str(number)) for number in range(3))
    assert one == same
    assert repeatable(runs[0]) == repeatable(runs[1])
    assert figures(tracker, runs[0].mlflow_run_id) == figures(tracker, runs[1].mlflow_run_id)
    assert one.keys() == other.keys()
    for name in ("final/model.safetensors", "checkpoints/step-2/model.safetensors", "curves.csv"):
        assert one[name] != other[name]


def test_arms_differ(experiment: Experiment, reference: Reference, tracker: Tracker, tmp_path: Path) -> None:
    experiment.train(tmp_path / "out", tracker, arm="garl-q1")
    name = "final/model.safetensors"
    assert files(tmp_path / "out")[name] != files(reference.out)[name]


def test_a_finished_run_is_not_run_again(
    experiment: Experiment, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_ArmRun", None)
    assert experiment.train(reference.out, reference.tracker) == reference.record
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now"):
        experiment.train(reference.out, reference.tracker, seed=1)
    changed = replace(experiment, settings=small_settings("train.learning_rate=0.5"))
    with pytest.raises(UserError, match=r"settings\.train\.learning_rate: 0\.0005 there, 0\.5 now"):
        changed.train(reference.out, reference.tracker)
