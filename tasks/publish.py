"""Publishing a model: what is known of it, its card, and its files on the Hugging Face hub."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from components.errors import UserError
from components.publishing.card import Facts, model_card, read_card
from components.publishing.upload import CARD, check_repository, model_files
from components.tracking.card import origin
from components.tracking.runs import flat
from tasks.evaluation import find_model, registered, registry, training_record

if TYPE_CHECKING:
    from components.tracking.registry import Registry
    from components.tracking.version import Version


@dataclass(frozen=True)
class Publication:
    """What would be on the hub; message: of the commit."""

    folder: Path
    files: list[str]
    card: ModelCard
    message: str

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of every file, the card among them."""
        sizes = {name: (self.folder / name).stat().st_size for name in self.files}
        return dict(sorted((sizes | {CARD: len(str(self.card).encode())}).items()))


def publication(model: str, repository: str, license: str | None = None) -> Publication:
    """A model's files and its card: the README.md in its folder if it has one, else what is known of it.

    model: a Hugging Face folder or a registered version; the final folder of `thaw train` is one of its run.

    Raises:
        UserError: there is no such model, it may not be published, or its README.md is no card.
    """
    check_repository(repository)
    folder, version = find_model(model)
    files, record = model_files(folder), training_record(folder)
    if record is not None:
        version = registered(record)
    if CARD in files:
        if license is not None:
            raise UserError(f"{folder / CARD} says what the license is; change it there, or leave --license out.")
        card = read_card((folder / CARD).read_text(encoding="utf-8"), str(folder / CARD))
        return Publication(folder, files, card, f"{folder.name}, by Thaw")
    if version is not None:
        facts = _of_version(registry(), version)
    else:
        facts = Facts(folder.resolve().name) if record is None else _of_record(record)
    facts = replace(facts, template=_has_chat_template(folder))
    arm = f": {facts.arm.name}, step {facts.step}" if facts.arm else ""
    return Publication(folder, files, model_card(facts, repository, license), f"{facts.name}{arm}, by Thaw")


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    )


def _of_version(found: "Registry", version: "Version") -> Facts:
    record: Mapping[str, str] = {}
    with suppress(MlflowException):  # registered by other means, or its run is gone
        record = found.store.call(found.store.client.get_run, version.run_id).data.params
    return Facts(
        name=version.reference,
        record=record,
        step=version.step,
        figures=version.metrics,
        expected=_expected(found, version, record.get("arm", "")),
        origin=origin(version) | ({"base model (md5)": record["base"]} if "base" in record else {}),
    )


def _of_record(record: Mapping[str, object]) -> Facts:
    """What `thaw train` wrote beside its final folder, where the MLflow store is not at hand."""
    params = {name: str(value) for name, value in flat(json.loads(json.dumps(record["identity"]))).items()}
    return Facts(
        name=f"{record['model_name']}/{record['model_version']}",
        record=params,
        step=int(str(record["best_step"])),
        figures={f"validation/maj_at_{params['settings.evaluation.samples']}": float(str(record["validation"]))},
        origin={"run": str(record["mlflow_run_id"]), "data (md5)": params["data"], "base model (md5)": params["base"]},
    )


def _expected(found: "Registry", version: "Version", arm: str) -> str:
    """What the sweep's probe forecast of an arm, in a sentence; empty where it made none."""
    sweep = version.tags.get(MLFLOW_PARENT_RUN_ID)
    if sweep is None:
        return ""
    store = found.store
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{sweep}' AND attributes.run_name = 'probe'"
    probes = store.call(store.client.search_runs, [store.experiment_id], condition, max_results=1)
    for probe in probes:
        figures = probe.data.metrics
        if (gain := figures.get(f"forecast/{arm}/gain_nats")) is not None:
            when = figures.get(f"forecast/{arm}/escape_step")
            by = "not at all" if when is None else f"by step {when:.0f}"
            return (
                f"Before training, the base model's P of a right answer was {figures['probe/p0_median']:.2g} on the"
                f" median question. {probe.data.params['settings.probe.look_ahead']} steps with this arm on a copy"
                f" changed mean log P of held-out questions by {gain:+.1f} nats, from which half of them were expected"
                f" at P = 0.1 {by}."
            )
    return ""
