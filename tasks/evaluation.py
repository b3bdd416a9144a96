"""Evaluating one model: a folder or a registered version, with its figures back to where it came from."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.config import Arm, Settings
from components.errors import UserError
from components.links import check_model
from components.progress import say

if TYPE_CHECKING:
    from components.data.example import Example
    from components.evaluation.evaluate import Evaluation
    from components.tracking.registry import Registry
    from components.tracking.version import Version


def evaluate_model(
    settings: Settings, model: str, examples: "list[Example]", *, split: str, out: Path, record: str | None = None
) -> dict[str, float]:
    """Score `model` on examples of a split, together with the other processes that a launcher started.

    Writes out/evaluation.json, out/metrics.json (the figures alone) and out/samples.jsonl.

    record: a name for the test set, under which files and figures are kept with the registered version. The final
        checkpoint of `thaw train` is such a version, and is recorded under the split's name unless another is given.

    Raises:
        UserError: there is no such model, or nothing that the evaluation could be kept with.
    """
    import torch

    from components.data.reading import digest
    from components.evaluation.evaluate import evaluate
    from components.policy.model import Codec, load_tokenizer
    from components.rollout.open import open_engine, sampled_model
    from components.tracking.table import log_table
    from components.training.ranks import Ranks
    from components.training.zero import end_ranks, start_ranks

    torch.set_num_threads(settings.compute.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        start_ranks()
    ranks = Ranks()
    folder, version = find_model(model)
    trained = training_record(folder)
    if trained is not None:
        version, record = registered(trained), record or split
        if version is None:
            say(f"{trained['model_name']}/{trained['model_version']} is not in this MLflow store; figures are in files")
    elif record and version is None:
        raise UserError(f"{model} is no registered version, which alone can keep an evaluation as '{record}'.")
    examined = digest(*(part for item in examples for part in (item.id, item.prompt, *item.answers)))
    if version is not None and record:
        registry().check_test_set(version, record, examined)  # now and not when all the sampling is done
    codec = Codec(load_tokenizer(folder), settings.model, chat=settings.task.start == "warm")
    with open_engine(settings, sampled_model(settings, folder), folder, codec.markers, ranks) as engine:
        result = evaluate(engine, codec, examples, settings.task.name, settings.rollout, settings.evaluation, ranks)
    end_ranks()
    figures = result.figures()
    if not ranks.first:
        return figures

    out.mkdir(parents=True, exist_ok=True)
    described = _describe(settings, trained) | {
        "split": split,
        "k": result.k,
        "examples": len(examples),
        "examples_digest": examined,
        "figures": figures,
        "checkpoint": model,
    }
    _write_json(out / "evaluation.json", described)
    _write_json(out / "metrics.json", figures)
    result.write(out / "samples.jsonl")
    if version is not None and record:
        found = registry()
        with _files(out) as files:
            found.add_evaluation(version, record, files, figures, examined)
        log_table(found.store, version.run_id, f"answers/{record}", _answers(version, examples, result))
    return figures


def registry() -> "Registry":
    """The project's registered models.

    Raises:
        UserError: the store cannot be used.
        NothingYet: there is none.
    """
    from components.tracking.runs import connect
    from tasks.workspace import project_root

    return connect(project_root(), make=False).registry


def find_model(model: str) -> "tuple[Path, Version | None]":
    """The folder of a model, and the version that its name stands for."""
    if Path(model).is_dir():
        check_model(Path(model))
        return Path(model), None
    if "/" not in model and "@" not in model:
        raise UserError(f"there is no folder {model}, and a registered version is written NAME/VERSION or NAME@ALIAS.")
    found = registry()
    version = found.find(model)
    return found.download(version.reference), version


def training_record(folder: Path) -> dict[str, Any] | None:
    """What `thaw train` wrote beside its final folder, if that is where the model is from."""
    path = folder.parent / "train.json"
    if folder.name != "final" or not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _describe(settings: Settings, trained: dict[str, Any] | None) -> dict[str, Any]:
    described: dict[str, Any] = {"task": settings.task.name, "start": str(settings.task.start)}
    if trained is not None:
        arm = Arm.parse(trained["arm"])
        described |= {"arm": arm.name, "method": arm.method.value, "q": arm.q_recorded, "seed": trained["seed"]}
    return described


def registered(trained: dict[str, Any]) -> "Version | None":
    """The version of a trained checkpoint; None where the registry is not the one it was trained with."""
    from components.tracking.store import NothingYet

    reference = f"{trained['model_name']}/{trained['model_version']}"
    with suppress(NothingYet):
        found = registry()
        with suppress(UserError):
            version = found.find(reference)
            if version.run_id == trained["mlflow_run_id"]:
                return version
    return None


def _answers(version: "Version", examples: "list[Example]", result: "Evaluation") -> dict[str, list[Any]]:
    """What a version answered, a row an example, for people who compare models in MLflow's UI."""
    scored = result.scored
    return {
        "prompt": [example.prompt for example in examples],
        "gold": [example.answers[0] for example in examples],
        "answer": [item.answers[0] for item in scored],
        "right": [item.correct[0] for item in scored],
        "vote": [item.vote for item in scored],
        "vote is right": [item.vote_correct for item in scored],
        "share right": [sum(item.correct) / len(item.correct) for item in scored],
        "rationale": [item.rationale for item in scored],
        "model": [version.reference] * len(scored),
        "id": [item.id for item in scored],
    }


@contextmanager
def _files(out: Path) -> Iterator[Path]:
    """A folder with what is kept of an evaluation, and nothing else that lies in `out`."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("evaluation.json", "samples.jsonl"):
            shutil.copy(out / name, folder)
        yield Path(folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
