"""The typed settings of an experiment: what params.yaml may say, and one clear sentence when it says something else."""

import hashlib
import json
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from components.errors import UserError
from components.objective.commitment import Commitment, Course
from components.settings_file import NO_TEXT, first_sentence, read_settings


class Method(StrEnum):
    """The estimators, by the names used in arm names, MLflow tags and reports."""

    GRPO = "grpo"
    DR_GRPO = "dr-grpo"
    RLOO = "rloo"
    MAXRL = "maxrl"
    STAR = "star"
    GARL = "garl"
    GARL_PLUGIN = "garl-plugin"
    GARL_DEBIASED = "garl-debiased"
    GARL_SCORE = "garl-score"  # without the gradient of the answer
    PAFT = "paft"
    GARL_PAFT = "garl-paft"  # GARL, then PAFT from where training turns unstable


# They learn from the rewards of sampled answers and have no commitment; all others score the gold answer.
OF_REWARDS = frozenset({Method.GRPO, Method.DR_GRPO, Method.RLOO, Method.MAXRL, Method.STAR})

# Published methods that are one point of the continuum (method.md of the paper's Section on special cases).
SPECIAL_CASES = {
    "rb-rloo": "garl-q0",
    "verifree": "garl-q0",
    "iwae": "garl-plugin-q1",
    "em": "paft-q1",
}

PLACEMENTS = ("colocated", "sleeping", "server")  # of vLLM, beside the URLs of servers

ARM_PATTERN = re.compile(r"(?P<method>[a-z-]+?)(?:-q(?P<q>[0-9a-z.-]+))?")


class Arm(BaseModel):
    """One column of the sweep: an estimator and its commitment, None for those that learn from rewards."""

    model_config = ConfigDict(frozen=True)

    method: Method
    commitment: Commitment | None

    @classmethod
    def parse(cls, name: str) -> "Arm":
        """Read an arm's name: `grpo`, `garl-q0.75`, `paft-q1to0`, `garl-qadaptive`, or a special case such as `iwae`.

        `Commitment` has the forms of q.

        Raises:
            UserError: the name is not of that form, its method is unknown, or q is no commitment that it can have.
        """
        match = ARM_PATTERN.fullmatch(SPECIAL_CASES.get(name, name))
        methods = [method.value for method in Method]
        if match is None or match["method"] not in methods:
            known = ", ".join([*methods, *SPECIAL_CASES])
            raise UserError(f"arm '{name}' names no known method; write METHOD-qQ (garl-q0.75) with one of: {known}.")
        method = Method(match["method"])
        if method in OF_REWARDS:
            if match["q"] is not None:
                raise UserError(f"arm '{name}': {method} has no commitment q; write plain '{method}'.")
            return cls(method=method, commitment=None)
        if match["q"] is None:
            raise UserError(f"arm '{name}' needs a commitment q between 0 and 1, as in {method}-q0.75.")
        try:
            commitment = Commitment.parse(match["q"])
        except ValueError as error:
            raise UserError(f"arm '{name}': {error}") from None
        if commitment.course is Course.EACH and method is not Method.GARL:
            raise UserError(f"arm '{name}': each example has its own q in plain GARL alone; write garl-qeach.")
        return cls(method=method, commitment=commitment)

    @property
    def q(self) -> float | None:
        """The commitment where it is one number; None where it moves, or there is none."""
        return self.commitment and self.commitment.fixed

    @property
    def moves(self) -> bool:
        """Whether it has a commitment that is not one number."""
        return self.commitment is not None and self.q is None

    @property
    def q_text(self) -> str | None:
        """The commitment as the arm's name has it: 0.75, 1to0, adaptive."""
        return self.commitment and str(self.commitment)

    @property
    def q_recorded(self) -> float | str | None:
        """The commitment in records of runs: a number where it is one, else as the arm's name has it."""
        return self.q_text if self.q is None else self.q

    @property
    def name(self) -> str:
        """The arm as `parse` reads it: garl-q0.75, or the method alone where there is no commitment."""
        return self.method.value if self.commitment is None else f"{self.method.value}-q{self.commitment}"

    @property
    def samples_answers(self) -> bool:
        """Whether training needs sampled answers or only rationales, whose gold answer is scored."""
        return self.method in OF_REWARDS


def _arm_name(name: str) -> str:
    try:
        Arm.parse(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return name


ArmName = Annotated[str, AfterValidator(_arm_name)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# By name; of the embedded task also the P of all its problems.
Start = Literal["mixed", "cold", "warm", "colder"] | Annotated[float, Field(gt=0, le=0.1)]


class Section(BaseModel):
    """Some settings that belong together; unknown names, infinities and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: object) -> object:
        """No file has such a name, and no tokenizer reads such a text."""
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(map(NO_TEXT.search, texts)):
            raise PydanticCustomError("no_text", "it holds a NUL or half a surrogate pair; take that out")
        return value


class TaskSettings(Section):
    """Which questions, and how much of the task their prompts give away."""

    name: Literal["skills", "finqa", "hotpotqa", "musique", "jsonl"]
    path: str  # the folder with the raw files
    start: Start
    kinds: Annotated[list[str], Field(min_length=1)] | None  # of problems that are kept; null keeps all
    train: Positive | None  # the most examples of each split; null takes all
    validation: Positive | None
    test: Positive | None
    seed: Seed  # of the split, and of the wrong labels
    label_noise: Annotated[float, Field(ge=0, lt=1)]  # the share of training answers replaced by another example's
    max_prompt_tokens: Positive | None  # null: what the model's context leaves beside rollout.max_new_tokens
    long_prompts: Literal["shorten", "drop"]  # what becomes of longer ones


class HubSource(Section):
    """A data set on the Hugging Face hub."""

    repository: str  # its id, or a folder with the same files
    config: str | None  # where the repository has several
    revision: str | None  # a commit, tag or branch; null: the newest


class ModelSettings(Section):
    """The base model: the embedded one, a local folder or a Hugging Face repository."""

    name: str  # "embedded", a folder, or a repository id such as Qwen/Qwen3-0.6B
    revision: str | None  # a commit of the repository
    dtype: Literal["float32", "bfloat16"]
    end_of_thinking: str  # the text that closes a rationale
    answer_prefix: str  # what stands between the rationale and the gold answer


class TeachingSettings(Section):
    """How the embedded model is taught its skills before the experiment starts."""

    steps: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    seed: Seed


def _check_placement(value: object) -> object:
    urls = value if isinstance(value, list) else [value]
    known = value in PLACEMENTS or (urls and all(re.fullmatch(r"https?://[^\s,]+", str(url)) for url in urls))
    if not known or len(set(map(str, urls))) < len(urls):
        raise ValueError(
            f"rollout.placement = {value!r}: write {', '.join(PLACEMENTS)}, the URL of a vLLM server"
            " (http://HOST:PORT), or a list of URLs, each once."
        )
    if any("@" in str(url) for url in urls):
        raise ValueError("rollout.placement holds a password, which every record of a run would show; leave it out.")
    return value


class RolloutSettings(Section):
    """How rationales are sampled."""

    engine: Literal["transformers", "vllm"]
    group_size: Positive  # M, rollouts of one example
    max_new_tokens: Positive  # of rationale and answer together
    answer_reserve: Positive  # of those, kept free for the answer
    batch_rollouts: Positive  # the most rollouts the Transformers engine samples at once
    timeout_seconds: Annotated[float, Field(gt=0)]  # of one engine call
    placement: Annotated[str | list[str], BeforeValidator(_check_placement)]  # of vLLM
    server_options: list[str]  # of `vllm serve`
    transfer: Literal["file", "broadcast", "adapters"]  # how servers get new weights
    weights_folder: str | None  # where servers at URLs find new weights
    staleness: Annotated[int, Field(ge=0, le=1)]  # updates by which a step's rollouts may be older than its weights
    table_every: Annotated[int, Field(ge=0)]  # steps between tables of rollouts; 0 for none
    table_rows: Positive

    @property
    def served(self) -> bool:
        """Whether servers sample, in processes of their own."""
        return self.placement not in ("colocated", "sleeping")

    @property
    def urls(self) -> list[str]:
        """Of the servers that somebody else started."""
        listed = [self.placement] if isinstance(self.placement, str) else self.placement
        return [name for name in listed if name not in PLACEMENTS]

    @model_validator(mode="after")
    def _placement_is_of_vllm(self) -> "RolloutSettings":
        if self.engine != "vllm" and self.placement != "colocated":
            raise ValueError(
                f"rollout.placement = {self.placement} needs rollout.engine = vllm; {self.engine} is always colocated."
            )
        return self

    @model_validator(mode="after")
    def _transfers_to_servers(self) -> "RolloutSettings":
        if self.transfer != "file" and not self.served:
            raise ValueError(
                f"rollout.transfer = {self.transfer} is for servers: set rollout.placement to server or a URL, or"
                " rollout.transfer to file."
            )
        return self

    @model_validator(mode="after")
    def _samples_beside(self) -> "RolloutSettings":
        if self.staleness and not self.served:
            raise ValueError(
                f"rollout.staleness = {self.staleness} samples while the trainer updates, which takes processes of"
                " their own: set rollout.engine to vllm and rollout.placement to server or a URL."
            )
        return self

    @model_validator(mode="after")
    def _answer_fits(self) -> "RolloutSettings":
        if self.answer_reserve >= self.max_new_tokens:
            raise ValueError(
                f"rollout.answer_reserve = {self.answer_reserve} leaves no room for a rationale;"
                f" keep it below rollout.max_new_tokens = {self.max_new_tokens}."
            )
        return self


class TrainSettings(Section):
    """The on-policy loop."""

    steps: Positive
    groups_per_step: Positive  # B, examples of one step
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["linear", "constant"]
    adam_epsilon: Annotated[float, Field(gt=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    offload: bool
    gradient_checkpointing: bool
    lora_rank: Annotated[int, Field(ge=0)]
    micro_batch_tokens: Positive  # the most tokens of one forward and backward pass
    normalize: bool  # divide GARL and PAFT by M^q (the paper's algorithms do)
    baseline: bool  # GARL's leave-one-out baseline
    non_finite: Literal["stop", "skip"]
    stop_on_collapse: bool
    importance_weights: Literal["none", "truncated", "masked"]
    importance_level: Literal["token", "sequence"]
    importance_bound: Annotated[float, Field(ge=1)]
    max_mismatch: Annotated[float, Field(gt=0)]  # nats, mean over sampled ids
    validate_every: Positive  # steps; also how often a checkpoint is kept
    keep: Positive | None

    @model_validator(mode="after")
    def _works(self) -> "TrainSettings":
        if self.offload and self.zero_stage == 0:
            raise ValueError("train.offload = true needs ZeRO; set train.zero_stage to 1, 2 or 3.")
        return self


class ProbeSettings(Section):
    """The cold-start probe."""

    examples: Positive  # training examples whose P is estimated
    look_ahead: Annotated[int, Field(ge=0)]  # optimizer steps of each arm, from the base model; 0 for none
    held_out: Positive  # validation examples whose log P tells what they did


class EvaluationSettings(Section):
    """How answers are counted."""

    samples: Positive  # per prompt; the k of p@k and maj@k
    bootstrap: Positive  # resamples behind an interval
    seed: Seed


class SweepSettings(Section):
    """How the arms of a sweep are run."""

    parallel: Positive  # arms at the same time
    retries: Annotated[int, Field(ge=0)]  # of a stage that was killed, hung, or lost its engine
    timeout_minutes: Annotated[float, Field(gt=0)]  # a stage that says nothing for so long hangs


class Stop(Section):
    """Where a race ended an arm, and why."""

    step: Positive
    reason: str


class RaceSettings(Section):
    """How `thaw sweep --race` thins out its arms."""

    rungs: Annotated[list[Positive], Field(min_length=1)]  # steps at which arms are stopped
    keep: Annotated[float, Field(gt=0, le=1)]  # the share of arms that may go on at a rung
    error: Annotated[float, Field(gt=0, lt=0.5)]  # the chance, at a rung, to call an arm beaten that is not behind
    stopped: dict[ArmName, Stop]  # what a race decided; it writes this itself


class PromoteSettings(Section):
    """What a version must show to become champion."""

    test_set: str  # the test set, by the name its figures were recorded under
    margin: Annotated[float, Field(ge=0, le=1)]  # the least gain in maj@k over the champion, a fraction of 1


class ComputeSettings(Section):
    """What of the machine one process may use."""

    threads: Positive  # CPU threads of one process; part of what makes a result exactly repeatable
    processes: Positive  # that train one arm together
    hostfile: str | None  # DeepSpeed's list of hosts to spread them over


class Settings(Section):
    """All of params.yaml."""

    arms: Annotated[list[ArmName], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    task: TaskSettings
    model: ModelSettings
    teaching: TeachingSettings
    rollout: RolloutSettings
    probe: ProbeSettings
    train: TrainSettings
    evaluation: EvaluationSettings
    sweep: SweepSettings
    race: RaceSettings
    promote: PromoteSettings
    compute: ComputeSettings
    hub: dict[Literal["finqa", "hotpotqa", "musique"], HubSource]

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for name in self.arms:
            check_group_size(Arm.parse(name), self.rollout.group_size, self.train.baseline)
        if self.rollout.transfer == "adapters" and not self.train.lora_rank:
            raise ValueError(
                "rollout.transfer = adapters sends adapters alone, and none are trained: set train.lora_rank, or"
                " rollout.transfer to file or broadcast."
            )
        if self.rollout.staleness and self.train.importance_weights == "none":
            raise ValueError(
                f"rollout.staleness = {self.rollout.staleness} trains on rollouts of older weights: set"
                " train.importance_weights to truncated or masked, which correct for it."
            )
        if self.compute.processes > self.train.groups_per_step:
            raise ValueError(
                f"compute.processes = {self.compute.processes} share train.groups_per_step ="
                f" {self.train.groups_per_step} groups, and a group is not split; lower the one or raise the other."
            )
        if len(set(self.arm_names)) < len(self.arms):
            raise ValueError(f"arms lists the same arm twice: {', '.join(self.arms)}.")
        if self.task.start not in ("cold", "warm") and self.task.name != "skills":
            raise ValueError(f"task.start = {self.task.start} exists for the embedded task alone; write cold or warm.")
        return self

    @property
    def arm_names(self) -> list[str]:
        """The arms by their own names: `iwae` is garl-plugin-q1."""
        return [Arm.parse(name).name for name in self.arms]

    def with_arm(self, name: str) -> "Settings":
        """These settings for a single arm.

        Raises:
            UserError: the arm is unknown, or the group size does not suit it.
        """
        try:
            return Settings.model_validate(self.model_dump() | {"arms": [name]})
        except ValidationError as error:
            raise UserError(first_sentence(error, Path("--arm"), ())) from None

    def sweep_name(self) -> tuple[str, str]:
        """The name of the sweep that runs with these settings belong to, and the digest it is known by."""
        apart = ("arms", "seeds", "sweep", "race", "promote")
        return f"{self.task.name}-{self.task.start}", self.digest(without=apart)

    def digest(self, *, without: Sequence[str] = ()) -> str:
        """A short hash of these settings, leaving out the named sections."""
        text = json.dumps(self.model_dump(mode="json", exclude=set(without)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_race(settings: Settings) -> None:
    """Refuse rungs at which runs cannot pause.

    Raises:
        UserError: a rung is no step of validation before the last one, or they do not rise.
    """
    rungs, every, steps = settings.race.rungs, settings.train.validate_every, settings.train.steps
    if rungs != sorted(set(rungs)) or any(rung % every or rung >= steps for rung in rungs):
        raise UserError(
            f"race.rungs = {rungs}: write rising multiples of train.validate_every = {every} below train.steps ="
            f" {steps}."
        )


def check_group_size(arm: Arm, group_size: int, baseline: bool) -> None:
    """Refuse an estimator that a group of this size cannot feed.

    Raises:
        ValueError: the estimator compares a rollout with the others of its group, and there are none.
    """
    always = (OF_REWARDS - {Method.STAR}) | {Method.GARL_DEBIASED}
    with_baseline = {Method.GARL, Method.GARL_SCORE, Method.GARL_PAFT}
    each = arm.commitment is not None and arm.commitment.course is Course.EACH
    compares = arm.method in always or each or (arm.method in with_baseline and baseline)
    if compares and group_size < 2:
        raise ValueError(
            f"rollout.group_size = 1, but arm '{arm.name}' compares each rollout with the others of its group;"
            " set rollout.group_size to 2 or more, or use garl-plugin or paft."
        )


def load_settings(path: Path = Path("params.yaml"), overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file and change some of them.

    A file that says `extends: other.yaml`, relative to itself, changes some settings of the other.

    overrides: "name=value" each, the name with dots (train.steps=20), the value in YAML.

    Raises:
        UserError: the file is missing or no YAML, or a setting is unknown, missing or out of range.
    """
    raw = read_settings(path, overrides)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError(first_sentence(error, path, overrides)) from None
