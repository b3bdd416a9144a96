"""The model card of a published model: the README.md that the Hugging Face hub shows and searches.

It says what is known of a model and nothing else, and the same model has the same card, byte for byte. What the hub
expects: https://huggingface.co/docs/hub/model-cards
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.config import Arm
from components.errors import UserError

FIGURE = re.compile(r"(?P<set>[^/]+)/(?P<name>(?P<kind>p|maj|exact|value)_at_(?P<k>[0-9]+))")
# As the hub's other cards call them; p@k is the chance that one of k answers is right.
METRICS = {"p": "pass@{}", "maj": "maj@{}", "exact": "exact_match@{}", "value": "value_match@{}"}
SPLITS = ("train", "validation", "test")  # of the task's own data; a test set of another name may be anything
# Settings that tell of a machine or a network and not of the model: they are not for others.
PRIVATE = re.compile(r"hub\..*|compute\..*|model\.name|task\.path|rollout\.(placement|server_options|weights_folder)")
ALWAYS = ("thaw", "reasoning", "tsallis-loss")  # tags by which the hub finds models like this one


@dataclass(frozen=True)
class Facts:
    """What is known of a model; empty where nobody wrote it down.

    name: of the model, as Thaw knows it.
    record: of its run, flat, as MLflow has it: arm, seed, data, base, settings.train.steps and so on.
    step: at which it was saved.
    figures: fractions of 1 by test set and name, test/maj_at_16, with _low and _high for the 95% interval.
    expected: what was forecast before training, in a sentence.
    origin: what it was made from, by name: the commit, digests, runs.
    template: whether its tokenizer has a chat template.
    """

    name: str
    record: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    expected: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)
    template: bool = False

    @property
    def arm(self) -> Arm | None:
        """The estimator and its q; None of a model that no arm has trained."""
        return Arm.parse(self.record["arm"]) if "arm" in self.record else None

    def setting(self, name: str, default: str = "") -> str:
        """A setting of its run, as text; `default` where it is not known or null."""
        found = self.record.get(f"settings.{name}", default)
        return default if found == "None" else found

    @property
    def task(self) -> str:
        """The name of the task; empty where it is not known."""
        return self.setting("task.name")

    @property
    def chat(self) -> bool:
        """Whether it is asked in its chat template: where it was trained so, and where nobody knows."""
        return self.template and self.setting("task.start", "warm") == "warm"

    @property
    def data_set(self) -> str | None:
        """The repository of the published data set; None where the task is nobody else's."""
        return self.setting(f"hub.{self.task}.repository") or None

    @property
    def base_model(self) -> str | None:
        """The repository it was trained from; None where that is a folder, the embedded model or not known."""
        name = self.setting("model.name")
        try:
            validate_repo_id(name)
        except HFValidationError:
            return None
        return name if "/" in name and not Path(name).is_dir() else None


def model_card(facts: Facts, repository: str, license: str | None = None) -> ModelCard:
    """The card of a model that is, or will be, in a repository of the hub.

    license: as the hub abbreviates it, apache-2.0; None leaves it out, for Thaw knows it of no model.

    Raises:
        UserError: the card would be none, as with a license of several lines.
    """
    arm = facts.arm
    results = _results(facts)
    data = ModelCardData(
        model_name=repository.rpartition("/")[2] if results else None,
        base_model=facts.base_model,
        datasets=[facts.data_set] if facts.data_set else None,
        eval_results=results or None,
        library_name="transformers",
        license=license,
        pipeline_tag="text-generation",
        tags=[*ALWAYS, arm.method.value] if arm else None,
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("card.md.j2").render(
        facts=facts, arm=arm, repository=repository, rows=_rows(facts), settings=_settings(facts)
    )
    return read_card(f"---\n{data.to_yaml()}\n---\n\n{text}", f"the card of {facts.name}")


def read_card(content: str, what: str) -> ModelCard:
    """A card as the hub's own parser reads it.

    Raises:
        UserError: it has no YAML block in front, or a broken one.
    """
    if not content.startswith("---"):
        raise UserError(f"{what} does not begin with a block of YAML between two lines of ---; `thaw card` writes one.")
    try:
        return ModelCard(content)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(
            f"{what} has metadata that the hub cannot read: {' '.join(str(error).split())[:200]}"
        ) from error


def _results(facts: Facts) -> list[EvalResult]:
    found = [match for name in facts.figures if (match := FIGURE.fullmatch(name))]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=(facts.data_set if match["set"] in SPLITS else None) or facts.task or "unknown",
            dataset_name=facts.task or match["set"],
            dataset_split=match["set"],
            metric_type=METRICS[match["kind"]].format(match["k"]),
            metric_name=f"{match['kind']}@{match['k']}, percent",
            metric_value=_percent(facts.figures[match[0]]),
            metric_args={"interval_95_percent": interval} if (interval := _interval(facts, match[0])) else None,
        )
        for match in sorted(found, key=lambda match: (match["set"], [*METRICS].index(match["kind"]), int(match["k"])))
    ]


def _rows(facts: Facts) -> list[list[str]]:
    """The figures as a table: its head, and a row for each test set."""
    results = _results(facts)
    order = [name.partition("@")[0] for name in METRICS.values()]
    names = {item.metric_type: item.metric_type.split("@") for item in results}
    names = sorted(names, key=lambda name: (order.index(names[name][0]), int(names[name][1])))
    cells = {(str(item.dataset_split), item.metric_type): _cell(item) for item in results}
    sets = sorted({test_set for test_set, _ in cells})
    return [["percent", *names], *([each, *(cells.get((each, name), "") for name in names)] for each in sets)]


def _cell(result: EvalResult) -> str:
    interval = (result.metric_args or {}).get("interval_95_percent")
    return f"{result.metric_value} {interval}" if interval else str(result.metric_value)


def _interval(facts: Facts, name: str) -> list[float]:
    ends = [facts.figures.get(name + end) for end in ("_low", "_high")]
    return [_percent(end) for end in ends if end is not None] if None not in ends else []


def _percent(value: float) -> float:
    return round(100 * value, 1)


def _settings(facts: Facts) -> list[tuple[str, str]]:
    """The settings of the run that made it, by name."""
    prefix = "settings."
    settings = {name.removeprefix(prefix): text for name, text in facts.record.items() if name.startswith(prefix)}
    return sorted((name, text) for name, text in settings.items() if not PRIVATE.fullmatch(name))
