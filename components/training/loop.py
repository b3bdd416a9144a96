"""Training one arm: sample rationales, weigh them, update, validate, keep; killed at any moment it can go on."""

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from components.config import Arm, Settings
from components.data.split_files import example, load_split
from components.errors import UserError
from components.evaluation.evaluate import Scored, answer, summarize
from components.evaluation.metrics import Estimate, finite
from components.links import copy_model
from components.policy.model import Codec, load_tokenizer
from components.policy.saving import save_policy
from components.progress import Progress, say
from components.randomness import derive_seed, generator
from components.rollout.engine import Rollout, RolloutEngine
from components.rollout.open import open_engine, sampled_model
from components.tracking.registry import DOWNLOADING
from components.tracking.runs import Run, Tracker
from components.training.checkpoint import (
    begun_state,
    find_state,
    forget,
    load_state,
    refuse_other,
    save_begun,
    save_state,
    write_folder,
)
from components.training.groups import GroupSampler, gold_group
from components.training.live import live_figures, told
from components.training.ranks import Ranks, lost_processes_told
from components.training.record import RECORD, TrainingRecord, identity_of, write_curves
from components.training.rollout_table import rollout_table
from components.training.shown import as_text, places_shown
from components.training.stream import GroupStream
from components.training.trainer import give_weights, open_trainer
from components.training.turn import Turn
from components.training.zero import start_ranks

SWITCH_TAG = "thaw.switch.step-"  # with the step's number: what is done from there on, and why
COLLAPSE = 0.1  # of the peak, at or below which validation counts as fallen to near zero
STOPPED_TAG = "thaw.stopped."  # with step and reason, of a run that a race ended


def train(
    settings: Settings,
    arm: Arm,
    seed: int,
    *,
    data: Path,
    base: Path,
    out: Path,
    tracker: Tracker,
    until: int | None = None,
) -> TrainingRecord | None:
    """Train one arm and leave its best checkpoint, by validation maj@k, in out/final.

    Run again on the same `out` it goes on where it was, or does nothing if it had finished.

    data: the folder that prepare wrote. base: the Hugging Face folder of the base model.
    out: gets checkpoints/step-N and final (Hugging Face folders), curves.csv and train.json; state/ while it runs.
    until: pause at this step of validation, before the end; there is no record then, and the next call goes on.

    Raises:
        UserError: `out` holds a run of other settings, other data or another base model, or there is no pausing at
            `until`.
        TemporaryError: the sampler, or another process of the run, is gone; the same call goes on.
    """
    if until is not None and until % settings.train.validate_every:
        raise UserError(
            f"--until {until}: a run pauses where it is validated; write a multiple of train.validate_every ="
            f" {settings.train.validate_every}."
        )
    identity = identity_of(settings, arm, seed, data, base)
    if (out / RECORD).exists():
        record = TrainingRecord.read(out)
        stop = settings.race.stopped.get(arm.name)
        refuse_other(
            record.identity | {"race.stopped": record.stopped}, identity | {"race.stopped": stop and stop.reason}, out
        )
        forget(out / "state", identity)
        return record
    if until is not None and (found := find_state(out / "state")) and load_state(found, identity).step >= until:
        return None
    start_ranks()
    with lost_processes_told():
        return _ArmRun(settings, arm, seed, identity, data=data, base=base, out=out).run(tracker, until)


class _ArmRun:
    """The parts of one run, put together once, and the loop over its steps."""

    def __init__(
        self, settings: Settings, arm: Arm, seed: int, identity: dict[str, Any], *, data: Path, base: Path, out: Path
    ) -> None:
        torch.set_num_threads(settings.compute.threads)
        torch.manual_seed(derive_seed(seed, "global"))
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.settings, self.arm, self.seed, self.stop = settings, arm, seed, settings.race.stopped.get(arm.name)
        self.data, self.base, self.out = data, base, out
        self.model_name = f"thaw-{settings.task.name}"
        self.validation = [example(row) for row in load_split(data, "validation")]
        self.tokenizer = load_tokenizer(base)
        self.codec = Codec(self.tokenizer, settings.model, chat=settings.task.start == "warm")
        # DeepSpeed before the engine: in the other order vLLM would take the process group for its own.
        self.ranks = Ranks()
        self.sampler = GroupSampler(
            settings, arm, seed, load_split(data, "train"), self.codec, rank=self.ranks.rank, ranks=self.ranks.size
        )
        self.trainer = open_trainer(settings, arm, seed, base)
        self.sampled = sampled_model(settings, base, self.trainer.own_model)
        self.state = begun_state(out / "state", identity)
        found = find_state(out / "state")
        if found is not None:
            self.state = load_state(found, identity)
            if self.stop and self.state.step > self.stop.step:
                raise UserError(
                    f"{found} is beyond step {self.stop.step}, at which the race stopped {arm.name}; delete {out}."
                )
            self.trainer.load(found)

    def run(self, tracker: Tracker, until: int | None = None) -> TrainingRecord | None:
        """Every process runs the loop; the first one alone validates, logs and writes."""
        first, markers, name = self.ranks.first, self.codec.markers, f"train {self.arm.name} seed {self.seed}"
        steps = range(self.state.step, self.steps if until is None else min(until, self.steps))
        k = self.settings.evaluation.samples
        if first:
            self._restore_checkpoints(tracker)
        with (
            self._tracked(tracker) if first else nullcontext() as run,
            open_engine(self.settings, self.sampled, self.base, markers, self.ranks) as engine,
            self._stream(engine) as stream,
        ):
            for step in (shown := Progress(steps, name, done=steps.start, at_once=True)):
                started = time.perf_counter()
                metrics, speed = self._step(stream, run, step)
                validates = (step + 1) % self.settings.train.validate_every == 0 or step + 1 == self.steps
                if validates:
                    metrics |= self._validate(stream, run, step + 1)
                self.state.curves.append({"step": step + 1, **metrics})
                self.state.wall_seconds += time.perf_counter() - started
                figures = live_figures(self.state.curves, speed, k)
                shown.show(told(figures, k), figures)
                if run:
                    run.metrics(step + 1, metrics | speed)
                if validates:
                    if run:
                        run.flush()
                    self.state.ahead = self.ranks.merge(stream.save())
                    self.state = self.ranks.share(self.state)
                    save_state(self.out / "state", self.state, self.trainer.save)
                    if self.state.ended:
                        break
            if run and until is None:
                self._finish(run)
        record = self._record(tracker, run.commit) if run and until is None else None
        self.trainer.close()
        return self.ranks.share(record)

    @property
    def steps(self) -> int:
        """How many there are to do; none are left to a run that ended before its time."""
        if self.state.ended:
            return self.state.step
        return self.stop.step if self.stop else self.settings.train.steps

    def _stream(self, engine: RolloutEngine) -> GroupStream:
        stale, settings, trainer = self.settings.rollout.staleness > 0, self.settings, self.trainer
        stream = GroupStream(
            self.sampler,
            engine,
            lambda: give_weights(settings, trainer, engine),
            stale=stale,
            steps=self.steps,
        )
        stream.load(self.state.ahead, self.state.step)
        return stream

    def _save(self, folder: Path) -> None:
        """Write the model as it is; every process has to, and the first one does."""
        weights = self.trainer.weights()
        if self.ranks.first:
            write_folder(folder, lambda partial: save_policy(self.trainer.policy, self.tokenizer, partial, weights))
        for _ in weights:  # which the processes gather together
            pass

    def _restore_checkpoints(self, tracker: Tracker) -> None:
        """Let exactly the checkpoints lie there that an interrupted run's state names; what else lies there is kept.

        A kill leaves half-written ones and ones without a state; `dvc repro` removes a stage's outputs before it runs
        it again: they are fetched back.
        """
        named, below = {f"step-{step}" for step in self.state.versions}, self.out / "checkpoints"
        for folder in (*below.glob("step-*"), *below.glob(f"{DOWNLOADING}*")):
            if folder.name not in named:
                shutil.rmtree(folder)
        for step, version in self.state.versions.items():
            folder = below / f"step-{step}"
            if not folder.exists() and int(step) in self.state.kept(self.settings.train.keep):
                tracker.registry.download(f"{self.model_name}/{version}", folder)

    def _tracked(self, tracker: Tracker) -> Run:
        """The MLflow run of this arm and seed: a new one, or the one that was interrupted."""
        settings, identity = self.settings, self.state.identity
        parent = tracker.sweep(*settings.sweep_name())
        if self.state.mlflow_run_id is None:
            save_begun(self.out / "state", self.state)
        run = tracker.run(
            f"{self.arm.name}-seed{self.seed}",
            parent=parent,
            params=identity | {"method": self.arm.method.value, "q": self.arm.q_recorded},
            tags=self._tags(),
            resume=self.state.mlflow_run_id,
            key=self.state.run_key,
        )
        if self.state.mlflow_run_id is None:
            run.dataset(settings.task.name, str(self.data), identity["data"])
            self.state.mlflow_run_id = run.id
            save_begun(self.out / "state", self.state)
        return run

    def _tags(self) -> dict[str, str]:
        """What runs and model versions are found and compared by."""
        return {
            "estimator": self.arm.method.value,
            "q": self.arm.q_text or "none",
            "task": self.settings.task.name,
            "start": str(self.settings.task.start),
            "seed": str(self.seed),
            "data_md5": self.state.identity["data"],
        }

    def _step(self, stream: GroupStream, run: Run | None, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """One step of training; what it measured, and how fast it was."""
        started = time.perf_counter()
        groups, seconds = stream.step(step)
        sampled = time.perf_counter()
        turn = self._turn(run, step)
        report = self.trainer.update(groups, step, turn)
        metrics = report.metrics() | turn.figures(self.arm, report.mean_log_p, self.state.curves)
        self._check_mismatch(metrics.get("mismatch/mean_abs", 0.0), step)
        every = self.settings.rollout.table_every
        if run and every and step % every == 0:
            draws = generator(self.seed, "table", step)
            table = rollout_table(groups, report, self.codec, self.settings.rollout.table_rows, draws)
            run.table(f"rollouts/step-{step + 1}", table)
        finished = time.perf_counter()
        rollouts = [group.rollouts for group in groups]
        everyone = [members for part in self.ranks.gather(rollouts) for members in part]
        tokens = sum(len(member.logprobs) for members in everyone for member in members)
        return metrics | _rollout_metrics(everyone), {
            "speed/step_seconds": finished - started,
            "speed/rollout_seconds": seconds,
            "speed/update_seconds": finished - sampled,
            "speed/tokens_per_second": tokens / (finished - started),
        }

    def _turn(self, run: Run | None, step: int) -> Turn:
        """What the arm does at a step; that it does something else from here on is said, and kept with the run."""
        turn = Turn.at(self.arm, step, self.settings.train.steps, self.state.curves)
        if run and turn.reason:
            say(f"{self.arm.name} seed {self.seed}, step {step + 1}: {turn.method} from here on, for {turn.reason}")
            run.tag(f"{SWITCH_TAG}{step + 1}", f"{turn.method}: {turn.reason}")
        return turn

    def _check_mismatch(self, mean: float, step: int) -> None:
        """End a run whose sampler is not the trainer's model, before a checkpoint of it is written.

        Stale rollouts differ by an update as well: only the first step's, which are not, are held to the bound.
        """
        bound = self.settings.train.max_mismatch
        if mean > bound and (step == 0 or not self.settings.rollout.staleness):
            raise UserError(
                f"step {step + 1}: log-probabilities of the {self.settings.rollout.engine} engine and of the trainer"
                f" differ by {mean:.2g} nats on average, above train.max_mismatch = {bound:g}: the engine still has the"
                " weights of an earlier step, or it computes in lower precision; resume, or raise the bound."
            )

    def _validate(self, stream: GroupStream, run: Run | None, step: int) -> dict[str, float]:
        """Score the validation split together; the first process keeps the checkpoint, which may get to be final."""
        stream.renew_after_sampling()
        scored, texts = self._score_validation(stream.engine)
        folder = self.out / "checkpoints" / f"step-{step}"
        self._save(folder)
        if run is None:
            return {}
        result = summarize(scored, self.settings.evaluation)
        figures = {f"validation/{name}": value for name, value in (result.figures() | result.mean_log_p()).items()}
        self.state.validated[str(step)] = {
            "right": [float(item.vote_correct) for item in result.scored],
            "log_p": [None if item.log_p is None else finite(item.log_p) for item in result.scored],
        }
        self.state.shown = dict([*self.state.shown.items()][:1]) | {str(step): texts}
        version = run.register(folder, self.model_name, step=step, tags=self._tags(), metrics=figures)
        self.state.step = step
        self.state.versions[str(step)] = version.version
        # Of equal scores the later one: it has learned from more.
        if result.maj_at_k.value >= self.state.best_score:
            self.state.best_step, self.state.best_score = step, result.maj_at_k.value
        self._look_for_collapse(result.maj_at_k, step)
        for other in set(map(int, self.state.versions)) - self.state.kept(self.settings.train.keep):
            shutil.rmtree(self.out / "checkpoints" / f"step-{other}", ignore_errors=True)
        say(f"{self.arm.name} seed {self.seed}, step {step}: validation maj@{result.k} {result.maj_at_k.value:.0%}")
        return figures | {f"validation/{name}": value for name, value in result.by_kind().items()}

    def _score_validation(self, engine: RolloutEngine) -> tuple[list[Scored], list[dict[str, Any]]]:
        """The validation examples scored, each process its share of them, with log P of their gold answers.

        With them rollouts of some of the examples, for people to read.
        """
        settings, ranks = self.settings, self.ranks
        found = answer(
            engine,
            self.codec,
            self.validation,
            settings.task.name,
            settings.rollout,
            settings.evaluation,
            ranks,
            description="validate",
        )
        engine.sleep()
        groups = [gold_group(self.codec, self.validation[place], rollouts, place) for place, _, rollouts in found]
        log_p = self.trainer.log_p(groups)
        scored = ranks.merge(
            {place: replace(one, log_p=value) for (place, one, _), value in zip(found, log_p, strict=True)}
        )
        texts = {
            place: as_text(self.codec, self.validation[place], one, rollouts)
            for place, one, rollouts in found
            if place in places_shown(self.validation)
        }
        everyone = {place: text for part in ranks.gather(texts) for place, text in part.items()}
        return scored, [everyone[place] for place in sorted(everyone)]

    def _look_for_collapse(self, now: Estimate, step: int) -> None:
        """Warn where validation has fallen to a tenth of its peak, both told apart from chance; end the run if set."""
        best = self.state.best_score
        if not (now.value <= COLLAPSE * best and now.high < best):
            return
        stop = self.settings.train.stop_on_collapse
        say(
            f"warning: {self.arm.name} seed {self.seed} collapsed: validation {now.value:.0%} at step {step}, after"
            f" {best:.0%} at step {self.state.best_step}, which stays the best checkpoint"
            f"{'; the run ends here' if stop else ''}."
        )
        self.state.ended = stop

    def _finish(self, run: Run) -> None:
        """Put the best checkpoint into final, and write the curves."""
        state = self.state
        if self.stop:
            run.tag(f"{STOPPED_TAG}step", str(self.stop.step))
            run.tag(f"{STOPPED_TAG}reason", self.stop.reason)
        best = self.out / "checkpoints" / f"step-{state.best_step}"
        write_folder(self.out / "final", lambda partial: copy_model(best, partial))
        write_curves(self.out / "curves.csv", state.curves)

    def _record(self, tracker: Tracker, commit: str | None) -> TrainingRecord:
        """Write the record, when all else is done and the MLflow run has ended, and drop the state to resume from."""
        state = self.state
        assert state.mlflow_run_id is not None
        tracker.registry.set_best(self.model_name, f"validation/maj_at_{self.settings.evaluation.samples}")
        record = TrainingRecord(
            identity=state.identity,
            arm=self.arm.name,
            seed=self.seed,
            steps=state.step,
            best_step=state.best_step,
            validation=state.best_score,
            wall_seconds=state.wall_seconds,
            mlflow_run_id=state.mlflow_run_id,
            model_name=self.model_name,
            model_version=state.versions[str(state.best_step)],
            stopped=self.stop and self.stop.reason,
            validated=state.validated,
            shown=state.shown,
            commit=commit,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        record.write(self.out)
        forget(self.out / "state", state.identity)
        return record


def _rollout_metrics(rollouts: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    flat = [rollout for members in rollouts for rollout in members]
    return {
        "rollout/rationale_length": sum(len(rollout.rationale_ids) for rollout in flat) / len(flat),
        "rollout/forced_share": sum(rollout.forced_end > 0 for rollout in flat) / len(flat),
    }
