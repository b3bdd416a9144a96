"""The typed settings of an experiment: what params.yaml may say, and one clear sentence when it says something else."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

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
from components.methods import Method
from components.objective.commitment import Commitment, Course
from components.settings_file import NO_TEXT, first_sentence, read_settings

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
        if method.learns_from == "reward":
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
        return self.method.learns_from == "reward"


def _arm_name(name: str) -> str:
    try:
        Arm.parse(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return name


ArmName = Annotated[str, AfterValidator(_arm_name)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Examples = Annotated[Positive, Field(json_schema_extra={"unit": "examples"})]
Rollouts = Annotated[Positive, Field(json_schema_extra={"unit": "rollouts"})]
Steps = Annotated[Positive, Field(json_schema_extra={"unit": "steps"})]
Tokens = Annotated[Positive, Field(json_schema_extra={"unit": "tokens"})]
FRACTION: Any = {"unit": "fraction of 1"}
# By name; of the embedded task also the P of all its problems.
Start = Literal["mixed", "cold", "warm", "colder"] | Annotated[float, Field(gt=0, le=0.1)]


class Section(BaseModel):
    """Some settings that belong together; unknown names, infinities and NaN are refused.

    Each has a docstring: its meaning in the first sentence, then when to change it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

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
    """The data set: skills is the embedded one, jsonl your own {prompt, answer} lines. Set it together with
    task.path and task.start."""

    path: str
    """The folder with the raw files, relative to where Thaw runs. Change it for data that lies elsewhere; `thaw data
    fetch` fills raw/TASK."""

    start: Start
    """How much the prompts give away: cold asks the bare question, warm says how to answer and uses the model's
    chat template. Use cold for a base model and warm for one that was tuned to follow instructions. The embedded
    task alone also has mixed, colder, and a number up to 0.1, the P of all its problems."""

    kinds: Annotated[list[str], Field(min_length=1)] | None
    """The kinds of problems that are kept; null keeps all. Name some, such as [sort], to study them alone."""

    train: Examples | None
    """The most training examples; null takes all. Lower it for a quick trial: which ones stay depends on task.seed
    alone."""

    validation: Examples | None
    """The most examples by which checkpoints are chosen; null takes all. Fewer make validation faster and the
    choice noisier."""

    test: Examples | None
    """The most held-out examples for the final figures; null takes all. More make their intervals narrower."""

    seed: Seed
    """Of the split into training, validation and test, and of the wrong labels. Change it to see whether a result
    depends on the split."""

    label_noise: Annotated[float, Field(ge=0, lt=1, json_schema_extra=FRACTION)]
    """The share of training answers that are replaced by another example's. Raise it above 0 only to study what
    each q does with wrong labels."""

    max_prompt_tokens: Tokens | None
    """The longest prompt; null takes what the model's context leaves beside rollout.max_new_tokens. Set it where
    long prompts do not fit into memory."""

    long_prompts: Literal["shorten", "drop"]
    """What becomes of longer prompts: shorten leaves out paragraphs that the answer does not need, drop the
    example. Take drop where every prompt must be whole."""


class HubSource(Section):
    """A data set on the Hugging Face hub."""

    repository: str
    """The data set's id on the Hugging Face hub, or a folder with the same files. Change it to fetch from a mirror."""

    config: str | None
    """Which of the repository's configurations; null where it has one alone. Set it where `thaw data fetch` says
    that there are several."""

    revision: str | None
    """A commit, tag or branch; null takes the newest. Keep a commit, so that everybody fetches the same."""


class ModelSettings(Section):
    """The base model: the embedded one, a local folder or a Hugging Face repository."""

    name: str
    """The base model: embedded, a folder, or a Hugging Face repository such as Qwen/Qwen3-0.6B. Set it to the model
    that you want to thaw; safetensors alone are read."""

    revision: str | None
    """The repository's commit, tag or branch; null takes the newest. Set it for a model from the hub, so that a
    later run starts from the same."""

    dtype: Literal["float32", "bfloat16"]
    """The numbers that the model computes with. Take bfloat16 on GPUs, for half the memory, and float32 on CPUs."""

    end_of_thinking: str
    """The text that closes a rationale. Set it to the model's own, which its tokenizer should know as one token."""

    answer_prefix: str
    """What stands between the end of the rationale and the answer. Set what the model was trained to write there:
    two line breaks for Qwen3."""


class TeachingSettings(Section):
    """How the embedded model is taught its skills before the experiment starts."""

    steps: Steps
    """Updates by which the embedded model is taught its skills; other models ignore it. Lower it for quick trials
    of the pipeline alone, for P then differs."""

    batch_size: Annotated[Positive, Field(json_schema_extra={"unit": "texts"})]
    """Texts of one such update. Change it only to make another base model."""

    learning_rate: Annotated[float, Field(gt=0)]
    """The step size of AdamW while the model is taught. Change it only to make another base model."""

    seed: Seed
    """Of the embedded model's first weights and texts. Change it to see whether a result depends on the base model."""


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
    """What samples: transformers needs no set-up and is quicker for tiny models, vllm is quicker for real ones.
    Take vllm on GPUs."""

    group_size: Rollouts
    """M, the rollouts of one example. Raise it where P is so low that few rationales help; memory and time grow
    with it."""

    max_new_tokens: Tokens
    """The longest rollout, rationale and answer together. Raise it where many rationales are cut off; a step takes
    longer then."""

    answer_reserve: Tokens
    """Of those, kept free for the answer behind a rationale that does not end by itself. Set it somewhat above the
    longest gold answer, which `thaw prepare` prints."""

    batch_rollouts: Rollouts
    """The most that the Transformers engine samples at once. Lower it where sampling runs out of memory, raise it
    where a GPU has some left."""

    timeout_seconds: Annotated[float, Field(gt=0, json_schema_extra={"unit": "seconds"})]
    """How long one call of the engine may take before it counts as dead. Raise it for long rollouts on slow
    machines."""

    placement: Annotated[str | list[str], BeforeValidator(_check_placement)]
    """Where vLLM samples: colocated in the trainer's process, sleeping the same but its GPU memory is given back
    while the model trains, server a `vllm serve` of its own, or the URL of a server that you started, or a list
    of them. Take sleeping where memory is short, servers where there are GPUs to spare."""

    server_options: list[str]
    """More options for the `vllm serve` that Thaw starts. Add some, such as --data-parallel-size=2, to spread it
    over GPUs."""

    transfer: Literal["file", "broadcast", "adapters"]
    """How servers get new weights: by a file, by broadcast between GPUs, or the adapters alone by a file. Take
    broadcast for large models and adapters with train.lora_rank."""

    weights_folder: str | None
    """Where new weights for servers are put, under one path for all; null is this machine's memory. Set a shared
    folder for servers on other hosts."""

    staleness: Annotated[int, Field(ge=0, le=1, json_schema_extra={"unit": "updates"})]
    """By how many updates a step's rollouts may be older than the weights they update. Set 1 to sample while the
    trainer updates; it takes servers and train.importance_weights."""

    table_every: Annotated[int, Field(ge=0, json_schema_extra={"unit": "steps"})]
    """How often a table of rollouts is kept in MLflow; 0 for never. Lower it to read more of what the model writes."""

    table_rows: Rollouts
    """How many of a step's rollouts such a table shows, drawn at random. Raise it to read more of each step."""

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

    steps: Steps
    """Updates of the weights in a run. Raise it where validation still rises at the end; a colder start needs more."""

    groups_per_step: Examples
    """B, the examples of one step, each with a group of rollouts. Raise it for a steadier gradient; a step then
    takes longer."""

    optimizer: Literal["adamw", "sgd"]
    """What turns gradients into updates. Stay with adamw; sgd is close to the theory's gradient flow and needs
    another learning rate."""

    learning_rate: Annotated[float, Field(gt=0)]
    """The size of the first updates. Lower it where validation jumps or collapses; models of a billion parameters
    take around 1e-6."""

    weight_decay: Annotated[float, Field(ge=0)]
    """How strongly weights are drawn to zero, relative to the learning rate. Leave it at 0 for post-training."""

    schedule: Literal["linear", "constant"]
    """The course of the learning rate: linear falls to zero over train.steps. Take constant where you may want to
    train on for more steps."""

    adam_epsilon: Annotated[float, Field(gt=0)]
    """AdamW's epsilon: above it, it takes equal steps along every gradient, however small. Leave it, unless you
    study the optimizer."""

    max_grad_norm: Annotated[float, Field(gt=0)]
    """The norm at which gradients are clipped. Lower it where train/grad_norm has spikes."""

    zero_stage: Annotated[int, Field(ge=0, le=3)]
    """What DeepSpeed's ZeRO spreads over the processes: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights
    too. Raise it where `thaw plan` says that a run does not fit."""

    offload: bool
    """Keeps optimizer states, with ZeRO 3 the weights too, in CPU memory. Set it where GPUs are too small even so;
    it is slow."""

    gradient_checkpointing: bool
    """Computes activations again in the backward pass instead of keeping them. Set it where activations do not fit;
    a step then takes longer."""

    lora_rank: Annotated[int, Field(ge=0)]
    """The rank of trained adapters, which are saved merged; 0 trains all weights. Set it where the optimizer's
    states do not fit."""

    micro_batch_tokens: Tokens
    """The most of one forward and backward pass; a group that has more takes two passes. Lower it where training
    runs out of memory."""

    normalize: bool
    """Divides GARL and PAFT by M^q, as the paper's algorithms do. Turn it off with sgd, whose updates it would
    shrink at a high q."""

    baseline: bool
    """GARL's leave-one-out baseline, which lowers the variance of its gradient. Turn it off only to see what it
    does."""

    non_finite: Literal["stop", "skip"]
    """What becomes of a step whose loss or gradient is not finite: stop ends the run, skip counts the step and goes
    on. Take skip for long unattended runs."""

    stop_on_collapse: bool
    """Ends a run whose validation fell below a tenth of its peak; it warns in any case. Set it in sweeps where
    machine time is dear."""

    importance_weights: Literal["none", "truncated", "masked"]
    """Corrects for what sampler and trainer differ in: weights above the bound are cut (truncated) or count as 0
    (masked). Needed with rollout.staleness; otherwise for samplers of lower precision."""

    importance_level: Literal["token", "sequence"]
    """Of what those weights are: sequence, a whole rollout, is exact; token is biased and has less variance. Take
    token where rollouts are long and most weights sit at the bound."""

    importance_bound: Annotated[float, Field(ge=1)]
    """The largest such weight. Lower it for less variance, raise it for less bias."""

    max_mismatch: Annotated[float, Field(gt=0, json_schema_extra={"unit": "nats"})]
    """By how much the log-probabilities of sampler and trainer may differ on average before a run ends, as when a
    sampler was left behind. Raise it for bfloat16, which differs by some 0.01; float32 differs by 1e-6."""

    validate_every: Steps
    """How often a run is validated and a checkpoint kept. Lower it to lose less when a run is killed, and to choose
    among more checkpoints."""

    keep: Annotated[Positive, Field(json_schema_extra={"unit": "checkpoints"})] | None
    """How many of the last checkpoints are kept, beside the best; null keeps all. Set it for large models, whose
    checkpoints fill a disk."""

    @model_validator(mode="after")
    def _works(self) -> "TrainSettings":
        if self.offload and self.zero_stage == 0:
            raise ValueError("train.offload = true needs ZeRO; set train.zero_stage to 1, 2 or 3.")
        return self


class ProbeSettings(Section):
    """The cold-start probe."""

    examples: Examples
    """How many training examples the probe estimates P of. Raise it where kinds of problems are rare."""

    look_ahead: Annotated[int, Field(ge=0, json_schema_extra={"unit": "steps"})]
    """Steps that each arm takes on a copy of the base model; 0 leaves the forecast out. Raise it for a surer
    forecast; the cost grows with arms times steps."""

    held_out: Examples
    """How many validation examples tell by their log P what those steps did. Raise it for a surer forecast."""


class EvaluationSettings(Section):
    """How answers are counted."""

    samples: Annotated[Positive, Field(json_schema_extra={"unit": "answers"})]
    """Sampled answers of one prompt; the k of p@k and maj@k. Lower it for quick trials; figures of different k do
    not compare."""

    bootstrap: Annotated[Positive, Field(json_schema_extra={"unit": "resamples"})]
    """Resamples behind each 95% interval. Raise it for interval ends that move less with the seed."""

    seed: Seed
    """Of the sampled answers and of the resamples. Change it to see how much figures move by chance."""


class SweepSettings(Section):
    """How the arms of a sweep are run."""

    parallel: Annotated[Positive, Field(json_schema_extra={"unit": "arms"})]
    """Arms that train at the same time; on GPUs at most one a GPU. Set it to the number of GPUs, or of CPU cores
    where memory allows."""

    retries: Annotated[int, Field(ge=0, json_schema_extra={"unit": "times"})]
    """How often a stage is tried again that was killed, hung, or lost its engine; training goes on from its
    checkpoint. Raise it on machines that are taken away."""

    timeout_minutes: Annotated[float, Field(gt=0, json_schema_extra={"unit": "minutes"})]
    """After how much silence a stage counts as hung. Raise it where a single step takes very long."""


class Stop(Section):
    """Where a race ended an arm, and why."""

    step: Steps
    """The step at which the race ended the arm. The race writes it."""

    reason: str
    """Why it did. The race writes it."""


class RaceSettings(Section):
    """How `thaw sweep --race` thins out its arms."""

    rungs: Annotated[list[Steps], Field(min_length=1)]
    """Steps at which arms are stopped, multiples of train.validate_every. Put the first one where arms begin to
    differ."""

    keep: Annotated[float, Field(gt=0, le=1, json_schema_extra=FRACTION)]
    """The share of the arms, rounded up, that may go on at a rung. Raise it to stop fewer."""

    error: Annotated[float, Field(gt=0, lt=0.5, json_schema_extra=FRACTION)]
    """The chance, at a rung, to call an arm beaten that no other is ahead of. Lower it to stop only what is surely
    behind."""

    stopped: dict[ArmName, Stop]
    """What a race decided, by arm. Leave it: a race writes this into its own folder's params.yaml."""


class PromoteSettings(Section):
    """What a version must show to become champion."""

    test_set: str
    """The test set whose maj@k decides, by the name its figures are recorded under. Set it to a newer one that you
    recorded with `thaw evaluate-registry`."""

    margin: Annotated[float, Field(ge=0, le=1, json_schema_extra=FRACTION)]
    """The least gain in maj@k over the champion, whose 95% interval must also be above zero. Raise it where a new
    champion costs something to bring out."""


class ComputeSettings(Section):
    """What of the machine one process may use."""

    threads: Annotated[Positive, Field(json_schema_extra={"unit": "threads"})]
    """CPU threads of one process; other numbers of them round differently. Raise it for larger models on CPUs with
    cores to spare."""

    processes: Annotated[Positive, Field(json_schema_extra={"unit": "processes"})]
    """Processes that train or evaluate one arm together, started by DeepSpeed's launcher; one a GPU. Set it to the
    number of GPUs that one arm needs."""

    hostfile: str | None
    """A file of "HOST slots=8" lines that spreads the processes over several hosts. Set it where one host has too
    few GPUs."""


class Settings(Section):
    """All of params.yaml."""

    arms: Annotated[list[ArmName], Field(min_length=1)]
    """What to compare: METHOD-qQ with method garl, garl-plugin, garl-debiased, garl-score, paft or garl-paft and q
    from 0 (RL) to 1 (marginal likelihood), fixed as in garl-q0.75 or moving as in garl-q1to0; or grpo, dr-grpo,
    rloo, maxrl, star, which learn from rewards alone. Take those that `thaw probe` says will get out of the
    cold."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Every arm is trained once with each. Add some to see how far results depend on chance."""

    task: TaskSettings
    """Which questions, and how much of the task their prompts give away. Set it first, for your own data."""

    model: ModelSettings
    """The base model, and how it marks the end of its rationale. Set it to the model that you want to thaw."""

    teaching: TeachingSettings
    """How the embedded model is made; other models ignore it. Leave it."""

    rollout: RolloutSettings
    """How rationales are sampled. Fit it to the length of answers and to the machine."""

    probe: ProbeSettings
    """How `thaw probe` looks ahead before any training. Raise its figures for a surer forecast."""

    train: TrainSettings
    """The updates, their optimizer and their memory. Fit it to the model and the machine."""

    evaluation: EvaluationSettings
    """How answers are sampled and counted. Change it to trade time for narrower intervals."""

    sweep: SweepSettings
    """How the arms of a sweep are run. Fit it to the machine."""

    race: RaceSettings
    """How `thaw sweep --race` thins out its arms. Fit it to train.steps."""

    promote: PromoteSettings
    """What a version must show to become champion. Fit it to what a mistake would cost."""

    compute: ComputeSettings
    """What of the machine one process may use. Fit it to the machine."""

    hub: dict[Literal["finqa", "hotpotqa", "musique"], HubSource]
    """Where `thaw data fetch` finds the published data sets. Change it to fetch from a mirror."""

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
    each = arm.commitment is not None and arm.commitment.course is Course.EACH
    compares = each or arm.method.pairs == "always" or (arm.method.pairs == "baseline" and baseline)
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
