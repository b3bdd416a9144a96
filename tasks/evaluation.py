"""Evaluating one model: a folder or a registered version, with its figures back to where it came from."""

import json
from pathlib import Path
from typing import Any

from components.config import Arm, Settings
from components.errors import UserError


def evaluate_model(settings: Settings, model: str, *, data: Path, split: str, out: Path) -> dict[str, float]:
    """Score `model` on a split; writes out/evaluation.json, metrics.json (the figures alone) and samples.jsonl.

    The figures of a checkpoint that `thaw train` made are also logged to its MLflow run and to its registered version.

    Raises:
        UserError: there is no such model or split.
    """
    import torch

    from components.data.prepare import example, load_split
    from components.evaluation.evaluate import evaluate
    from components.policy.model import Codec, load_model, load_tokenizer
    from components.rollout.open import open_engine

    torch.set_num_threads(settings.compute.threads)
    folder = _local_folder(model)
    examples = [example(row) for row in load_split(data, split)]
    policy = load_model(folder, dtype=settings.model.dtype)
    codec = Codec(load_tokenizer(folder), settings.model, chat=settings.task.start == "warm")
    with open_engine(settings, policy, folder, codec.markers) as engine:
        result = evaluate(engine, codec, examples, settings.task.name, settings.rollout, settings.evaluation)

    figures = result.figures()
    out.mkdir(parents=True, exist_ok=True)
    trained = _training_record(folder)
    described = _describe(settings, trained) | {
        "split": split,
        "k": result.k,
        "examples": len(examples),
        "figures": figures,
        "checkpoint": model,
    }
    _write_json(out / "evaluation.json", described)
    _write_json(out / "metrics.json", figures)
    result.write(out / "samples.jsonl")
    if trained is not None:
        _log(trained, {f"{split}/{name}": value for name, value in figures.items()})
    return figures


def _local_folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    if "/" not in model and "@" not in model:
        raise UserError(f"there is no folder {model}, and a registered version is written NAME/VERSION or NAME@ALIAS.")
    from components.tracking.runs import connect
    from tasks.workspace import project_root

    return connect(project_root()).registry.download(model)


def _training_record(folder: Path) -> dict[str, Any] | None:
    """What `thaw train` wrote beside its final folder, if that is where the model is from."""
    path = folder.parent / "train.json"
    if folder.name != "final" or not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _describe(settings: Settings, trained: dict[str, Any] | None) -> dict[str, Any]:
    described: dict[str, Any] = {"task": settings.task.name, "start": settings.task.start}
    if trained is not None:
        arm = Arm.parse(trained["arm"])
        described |= {"arm": arm.name, "method": arm.method.value, "q": arm.q, "seed": trained["seed"]}
    return described


def _log(trained: dict[str, Any], figures: dict[str, float]) -> None:
    from components.tracking.runs import connect
    from tasks.workspace import project_root

    tracker = connect(project_root())
    tracker.log_figures(trained["mlflow_run_id"], figures, step=trained["best_step"])
    tracker.registry.add_metrics(trained["model_name"], trained["model_version"], figures)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
