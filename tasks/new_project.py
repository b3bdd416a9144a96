"""A project of one's own: settings, data and pipeline in a folder, all looked at before anything is written."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from components.config import Settings, load_settings
from components.errors import UserError
from components.links import check_model
from components.own_data import Columns, Table, doubts, hold_out, read_table, write_lines
from components.settings_file import read_yaml
from tasks.inputs import make_data
from tasks.workspace import project_root

CODE = Path(__file__).parents[1]  # where Thaw itself lies
PARAMS, PIPELINE, DATA = "params.yaml", "dvc.yaml", "data"
SCHEMA = "params.schema.json"
PAPER = "infra/profiles/paper/paper.yaml"  # of a real model
ARMS = ["grpo", "garl-q0.75", "garl-q1", "paft-q0.75"]
# What keeps a model of some size on a machine without a GPU within hours.
WITHOUT_GPU = {
    "model.dtype": "float32",
    "rollout.engine": "transformers",
    "rollout.group_size": 16,
    "rollout.max_new_tokens": 256,
    "rollout.batch_rollouts": 64,
    "train.micro_batch_tokens": 4096,
    "train.max_mismatch": 0.01,
}
MOST_VALIDATED = 100  # questions; validation comes back every few steps
ROOM = 16  # tokens beside the longest answer, for the end of a rationale that does not end by itself


@dataclass(frozen=True)
class Wanted:
    """What a project shall be made of.

    data: a table of questions, or the folder of a published data set. test: a table of held-out questions. columns:
    what the table's fields are called. model: a folder, a repository on the hub, or `embedded`. overrides: settings.
    """

    folder: Path
    task: str
    data: Path
    model: str
    columns: Columns | None = None
    test: Path | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Checked:
    """What was found out: sentences on the data, what `prepare` reports, what looks wrong, and whether it fits."""

    settings: Settings
    read: list[str]
    splits: dict[str, Any]
    doubts: list[str] = field(default_factory=list)
    fits: str = ""


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse a folder that has a project already.

    Raises:
        UserError: it has, and `force` is not set; or it is Thaw's own.
    """
    if folder.resolve() == CODE:
        raise UserError("this folder is Thaw's own; name another for your project, as in `thaw init mine`.")
    there = [name for name in (PARAMS, PIPELINE, f"{DATA}/train.jsonl") if (folder / name).exists()]
    if there and not force:
        raise UserError(
            f"{folder / there[0]} exists and would be overwritten; name another folder, as in `thaw init mine`, or say"
            " --force."
        )


@contextmanager
def checked(wanted: Wanted) -> Iterator[tuple[Checked, Path]]:
    """Look at data and model, and choose settings for them; nothing of it is in the project's folder yet.

    Yields what was found, and the folder to give to `write_project`, which is gone afterwards.

    Raises:
        UserError: data, model or a setting cannot be used.
    """
    check_local_model(wanted.model)
    with TemporaryDirectory(prefix="thaw-init-") as made:
        tables = _tables(wanted)
        data = wanted.data
        if tables:
            data = Path(made) / DATA
            data.mkdir()
            for name, lines in _split(tables).items():
                write_lines(lines, data / f"{name}.jsonl")
        lines = [line for table in tables for line in table.lines]
        settings = _settings(wanted, data, [line["answer"] for line in lines], Path(made))
        _check_tokenizer(settings)
        splits = make_data(settings, Path(made) / "prepared")
        read = [table.told() for table in tables]
        found = Checked(
            settings, read, splits, [*doubts(lines), *_doubts(settings, splits)] if lines else [], _fit(settings)
        )
        yield found, data


def write_project(wanted: Wanted, settings: Settings, data: Path) -> list[Path]:
    """Write the project, its settings last; returns the files.

    data: of a table, its lines as `checked` left them.
    """
    folder = wanted.folder
    folder.mkdir(parents=True, exist_ok=True)
    content = settings.model_dump(mode="json")
    content["task"]["path"] = DATA if wanted.columns else _reach(wanted.data, folder)
    if Path(wanted.model).is_dir():
        content["model"]["name"] = _reach(Path(wanted.model), folder)
    if wanted.columns:
        shutil.copytree(data, folder / DATA, dirs_exist_ok=True)
    _start_dvc(folder)
    (folder / PIPELINE).write_text(_pipeline(folder), encoding="utf-8")
    (folder / PARAMS).write_text(_text(content, folder), encoding="utf-8")
    return [folder / name for name in (PARAMS, PIPELINE, *([DATA] if wanted.columns else []))]


def check_local_model(name: str) -> None:
    """Refuse a folder that is no model which Thaw can load; what comes from the hub is fetched by the first command.

    Raises:
        UserError: it does not exist, lacks a file, or would have us read other files than its own.
    """
    folder = Path(name)
    if name == "embedded" or (not folder.exists() and len(folder.parts) == 2 and not folder.is_absolute()):
        return
    if not folder.is_dir():
        raise UserError(
            f"there is no model's folder {name}; name one with config.json, tokenizer.json and safetensors."
        )
    check_model(folder)
    lacking = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    if lacking:
        raise UserError(
            f"{folder} has no {lacking[0]}; give the folder that save_pretrained wrote, tokenizer included."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no *.safetensors, and other weights are not read; save_pretrained the model again."
        )


def _tables(wanted: Wanted) -> list[Table]:
    if wanted.columns is None:
        return []
    files = [wanted.data] if wanted.test is None else [wanted.data, wanted.test]
    return [read_table(file, wanted.columns) for file in files]


def _split(tables: Sequence[Table]) -> dict[str, list[dict[str, Any]]]:
    if len(tables) == 2:
        return {"train": tables[0].lines, "test": tables[1].lines}
    train, test = hold_out(tables[0].lines)
    return {"train": train, "test": test}


def _settings(wanted: Wanted, data: Path, answers: Sequence[str], made: Path) -> Settings:
    """The project's own for the embedded model; the paper's for others, made small where there is no GPU."""
    import torch

    chosen: dict[str, Any] = {"arms": ARMS, "task.name": wanted.task, "task.path": str(data)}
    chosen |= {"model.name": wanted.model, "model.revision": None, "task.train": None, "task.start": "cold"}
    chosen |= {"task.validation": max(1, min(MOST_VALIDATED, len(answers) // 10))} if answers else {}
    if wanted.model == "embedded":
        chosen |= {"rollout.max_new_tokens": 48}
    else:
        chosen |= {} if torch.cuda.is_available() else WITHOUT_GPU | {"compute.threads": os.cpu_count() or 1}
        chosen |= _of_model(Path(wanted.model))
    content = _raw(CODE / (PARAMS if wanted.model == "embedded" else PAPER), chosen)
    if answers:
        content["rollout"]["answer_reserve"] = 1  # whatever the rollout's length, until that is known
        content["rollout"]["answer_reserve"] = _answer_reserve(_changed(content, wanted, made), answers)
    return _changed(content, wanted, made)


def _raw(file: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    overrides = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in chosen.items()]
    return load_settings(file, overrides).model_dump(mode="json")


def _changed(content: dict[str, Any], wanted: Wanted, made: Path) -> Settings:
    """With the overrides, which alone are named where one of them is wrong."""
    (made / PARAMS).write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return load_settings(made / PARAMS, wanted.overrides)


def _of_model(folder: Path) -> dict[str, Any]:
    """What its tokenizer's files tell: whether it was tuned to follow instructions, and thinks as Qwen3 does."""
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in (folder / "tokenizer_config.json", folder / "chat_template.jinja")
        if path.is_file()
    ]
    chat = (folder / "chat_template.jinja").is_file() or any('"chat_template"' in text for text in texts)
    thinks = any("</think>" in text for text in texts)
    return {"task.start": "warm" if chat else "cold", "model.answer_prefix": "\n\n" if chat and thinks else ""}


def _answer_reserve(settings: Settings, answers: Sequence[str]) -> int:
    """Tokens for the longest answer, and at most half of a rollout."""
    from components.policy.tokens import TokenCounter

    longest = max(TokenCounter(settings.model, chat=False).answers(answers))
    return max(1, min(longest + ROOM, settings.rollout.max_new_tokens // 2))


def _check_tokenizer(settings: Settings) -> None:
    """Whether it has the tokens that structure a rollout."""
    from components.policy.model import Codec, load_tokenizer

    if settings.model.name != "embedded":
        tokenizer = load_tokenizer(settings.model.name, revision=settings.model.revision)
        Codec(tokenizer, settings.model, chat=settings.task.start == "warm")


def _doubts(settings: Settings, splits: dict[str, Any]) -> list[str]:
    longest = max(split["answer_tokens"]["max"] for split in splits.values())
    if longest <= settings.rollout.answer_reserve:
        return []
    return [
        f"the longest answer has {longest} tokens, and rollout.answer_reserve keeps"
        f" {settings.rollout.answer_reserve} free: raise it with rollout.max_new_tokens, or leave such answers out."
    ]


def _fit(settings: Settings) -> str:
    """Whether training fits this machine, in a sentence."""
    from components.capacity import in_bytes
    from tasks.plan import make_plan

    plan = make_plan(settings, None)
    lacking = plan.found.lacking(plan.memory)
    device = f"{plan.device} ({in_bytes(plan.memory)}), of which it takes {in_bytes(plan.found.peak)} at most"
    return f"Training fits {device}." if lacking is None else f"Training does not fit {device}: {lacking}."


def _text(content: dict[str, Any], folder: Path) -> str:
    from components.schema import settings_schema
    from components.settings_text import settings_text

    title = "Written by `thaw init`. Every command reads these settings; `--set train.steps=20` changes one for a run."
    schema = settings_schema(read_yaml(CODE / PARAMS))
    return settings_text(content, schema, schema_path=_reach(CODE / SCHEMA, folder), title=title)


def _pipeline(folder: Path) -> str:
    """Thaw's own; outside of its clone without its files, among which DVC would count what Python caches there."""
    text = (CODE / PIPELINE).read_text(encoding="utf-8")
    if CODE in folder.resolve().parents:
        return text.replace("- code: .\n", f"- code: {_reach(CODE, folder)}\n")
    lines = [line for line in text.replace("vars:\n  - code: .\n", "").splitlines() if "${code}" not in line]
    told = "# Thaw's own code is none of the dependencies: after an update `dvc repro --force` builds again.\n"
    return (told + "\n".join(lines) + "\n").replace("    deps:\n    params:", "    params:")


def _reach(target: Path, folder: Path) -> str:
    """A path that the project's folder can use: relative within one DVC project, so that it can move, else absolute."""
    target = target.resolve()
    return os.path.relpath(target, folder) if target.is_relative_to(project_root(folder)) else str(target)


def _start_dvc(folder: Path) -> None:
    """Where no project of DVC is at or above the folder: one of its own, beside git if there is git."""
    if (project_root(folder) / ".dvc").is_dir():
        return
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it would greet
    above = [parent for parent in (folder.resolve(), *folder.resolve().parents) if (parent / ".git").exists()]
    inside = bool(above) and above[0] != folder.resolve()
    with Repo.init(str(folder), no_scm=not above, subdir=inside) as repo, repo.config.edit() as config:
        config["core"] |= {"analytics": False, "check_update": False}
