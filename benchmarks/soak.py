"""The long life of `thaw serve`: many short runs, by a schedule and on demand, and something is killed now and then.

    python -m benchmarks.soak --runs 200          # writes build/bench/soak.json and soak.md; --minutes bounds it

In a fresh copy of the project with quick settings, with a Prefect server, a worker and a store of its own. Most runs
find nothing stale; every sixth trains one arm with a setting of its own, and is asked for again until it is complete.
Killed, with SIGKILL and at moments that a seed decides, are flow runs, workers, trainings, the guards of trainings, and
once or twice Prefect's server and `thaw serve` itself, which is started again. Ends with 1 if a process outlived its
run, a figure was lost, or Prefect and MLflow disagree.
"""

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.flow import PROJECT, environment, project, run
from benchmarks.soak_counts import Growth, Sample, Tracked, disagreements, growth, leftovers, tracked

OUT = PROJECT / "build" / "bench"
MARK = "THAW_SOAK"  # in the environment of every process that comes of the installation
OF_RUN = "PREFECT__FLOW_RUN_ID"
KILLS = {"flow run": 8, "training": 4, "worker": 3, "guard": 1, "server": 1, "serve": 1}  # by how often
TRAINS = 6  # of so many runs that are asked for, one trains
NIGHTLY, EVERY = 'cron: "0 2 * * *"', 45  # the schedule, and the seconds between two runs in its place
SAMPLED = 5.0  # seconds between two looks at processes
GONE = 60.0  # seconds after which what should have ended counts as an orphan


def main() -> None:
    parser = argparse.ArgumentParser(description="Many short runs of `thaw serve`, with kills.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, help="by default one for every four runs")
    parser.add_argument("--minutes", type=float, default=240, help="no run is begun after that")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills = options.runs // 4 if options.kills is None else options.kills
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(Path(scratch), options.runs, kills, 60 * options.minutes, random.Random(options.seed))
        found = soak.live()
    OUT.mkdir(parents=True, exist_ok=True)
    told = {"command": " ".join(["python -m benchmarks.soak", *sys.argv[1:]]), "machine": machine(), **asdict(found)}
    (OUT / "soak.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (OUT / "soak.md").write_text(table(found), encoding="utf-8")
    print(table(found))
    sys.exit(1 if found.faults() else 0)


@dataclass
class Found:
    minutes: float
    runs: dict[str, int]  # by their last state; asked and scheduled
    again: int  # trainings that were asked for once more, since a kill had ended them
    stages_retried: int
    kills: dict[str, int]
    orphans: list[str]
    tracked: Tracked
    disagreements: list[str]
    growth: list[Growth]
    leftovers: dict[str, int]

    def faults(self) -> list[str]:
        return [*self.orphans, *self.tracked.lost, *self.disagreements]


@dataclass
class Soak:
    """One installation, from its first run to its last."""

    scratch: Path
    runs: int
    kills: int
    seconds: float
    chance: random.Random
    mark: str = field(default_factory=lambda: uuid4().hex)
    killed: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    strays: dict[psutil.Process, float] = field(default_factory=dict)  # since when they should have ended
    orphans: list[str] = field(default_factory=list)
    due: str = ""  # what is killed next
    begun: int = 0  # runs
    asked: int = 0
    again: int = 0

    def live(self) -> Found:
        self.folder, self.home = project(self.scratch / "project", 1), self.scratch / "prefect"
        plan = self.folder / "prefect.yaml"
        plan.write_text(plan.read_text(encoding="utf-8").replace(NIGHTLY, f"interval: {EVERY}"), encoding="utf-8")
        run(self.folder, "thaw", "sweep", home=self.home)
        (self.scratch / "tmp").mkdir()
        self.port = _free_port()
        url = f"http://127.0.0.1:{self.port}/api"
        self.began = self.looked = time.monotonic()
        self.serving = self._serve()
        try:
            with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
                self.client: SyncPrefectClient = client
                states, retried = self._work()
        finally:
            self.serving.terminate()
            self.serving.wait(300)
        ended = time.monotonic()
        while (rest := list(self._marked())) and time.monotonic() < ended + GONE:
            time.sleep(1)
        self.orphans += [f"after the end of thaw serve: {_named(process)}" for process in rest]
        found = tracked(self.folder)
        return Found(
            minutes=(ended - self.began) / 60,
            runs=dict(Counter(states.values())),
            again=self.again,
            stages_retried=retried,
            kills=dict(self.killed),
            orphans=self.orphans,
            tracked=found,
            disagreements=disagreements(states, found),
            growth=growth(self.samples),
            leftovers=dict(leftovers(self.folder, self.home, self.scratch / "tmp")),
        )

    def _work(self) -> tuple[dict[str, str], int]:
        """All runs; the last state of each by its name, and how many tasks needed more than one attempt."""
        self._until(lambda: self._answers() and self._workers())
        self._decide()
        while len(self._begun()) < self.runs and time.monotonic() < self.began + self.seconds:
            self.asked += 1
            self._see_through(training=self.asked % TRAINS == 3)
        self.kills = 0
        nightly = self._call(self.client.read_deployment_by_name, "q_sweep/nightly").id
        for schedule in self._call(self.client.read_deployment_schedules, nightly):
            self.client.delete_deployment_schedule(nightly, schedule.id)
        self._until(lambda: all(run.state and run.state.is_final() for run in self._begun()), 300)
        retried = sum(task.run_count > 1 for task in self._tasks())
        return {f"{run.name} {run.id}": run.state_type.value for run in self._begun() if run.state_type}, retried

    def _see_through(self, *, training: bool) -> None:
        """Ask for a run and wait for its end; a training is asked for until it is complete."""
        name, parameters = "prepare/prepare", {}
        if training:
            rate = {"train": {"learning_rate": 0.0001 * self.asked}}
            name, parameters = "post_train/train", {"arm": "grpo", "changes": rate, "name": f"soak-{self.asked}"}
        for attempt in range(10 if training else 1):
            self.again += attempt > 0
            deployment = self._call(self.client.read_deployment_by_name, name)
            asked = self._call(self.client.create_flow_run_from_deployment, deployment.id, parameters=parameters)
            if self._end(asked.id) == "COMPLETED":
                return

    def _end(self, key: UUID) -> str | None:
        """The state that a run ends in; None if it does not end."""
        ended = []

        def has() -> bool:
            state = self.client.read_flow_run(key).state
            ended.extend([state.type.value] if state and state.is_final() else [])
            return bool(ended)

        self._until(has)
        return next(iter(ended), None)

    def _until(self, condition, seconds: float = 900) -> None:
        """Wait, and let happen what happens meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):  # the server was killed, and comes again
                if condition():
                    return
            self._kill()
            self._look()
            time.sleep(0.5)

    def _call(self, function, *arguments, **options):
        """Ask the server, again and again while it is away."""
        answer = []
        self._until(lambda: answer.append(function(*arguments, **options)) or True)
        return answer[0]

    def _begun(self) -> list[FlowRun]:
        """All runs but those that the schedule has in store."""
        begun = FlowRunFilter(state={"type": {"not_any_": ["SCHEDULED"]}})
        found, page = [], [None]
        while page:
            page = self._call(self.client.read_flow_runs, flow_run_filter=begun, limit=200, offset=len(found))
            found += page
        return found

    def _tasks(self):
        found, page = [], [None]
        while page:
            page = self._call(self.client.read_task_runs, limit=200, offset=len(found))
            found += page
        return found

    def _answers(self) -> bool:
        return self.client.hello().is_success

    def _workers(self) -> bool:
        return bool(self.client.read_workers_for_work_pool("thaw-cpu"))

    # What goes wrong

    def _decide(self) -> None:
        """What is killed next, and not before when."""
        weights = {kind: number for kind, number in KILLS.items() if number > 1 or self.killed[kind] < 2}
        [self.due] = self.chance.choices(list(weights), list(weights.values()))
        self.due_at = time.monotonic() + self.chance.expovariate(1 / 20)

    def _kill(self) -> None:
        """Kill what is due, as soon as there is something of that kind."""
        spent = sum(self.killed.values()) >= self.kills * min(1.0, self.begun / self.runs)
        if not self.due or spent or time.monotonic() < self.due_at:
            return
        victims = [process for process in self._tree() if _kind(process) == self.due]
        if not victims:
            return
        self.chance.choice(victims).kill()
        self.killed[self.due] += 1
        if self.due == "serve":
            self.serving.wait()
            time.sleep(5)
            self.serving = self._serve()
        self._decide()

    def _look(self) -> None:
        """Note what serve, worker and server hold, and which processes should have ended."""
        now = time.monotonic()
        if now < self.looked + SAMPLED:
            return
        self.looked = now
        tree = self._tree()
        for process in tree:
            if (role := _kind(process)) in ("serve", "worker", "server"):
                with suppress(psutil.Error):
                    held, handles = process.memory_info().rss, process.num_fds()
                    self.samples.append(Sample(role, process.pid, now - self.began, held, handles))
        runs = self._begun()
        self.begun, ended = len(runs), {str(run.id) for run in runs if run.state and run.state.is_final()}
        loose = {process for process in self._marked() if process not in tree or _run_of(process) in ended}
        self.strays = {process: self.strays.get(process, now) for process in loose}
        for process, since in self.strays.items():
            told = f"{_named(process)}"
            if now > since + GONE and told not in self.orphans:
                self.orphans.append(told)

    def _serve(self) -> subprocess.Popen[bytes]:
        with (self.scratch / "serve.log").open("a") as log:
            return subprocess.Popen(
                ["thaw", "serve", "--port", str(self.port)],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment(self.folder, self.home) | {MARK: self.mark, "TMPDIR": str(self.scratch / "tmp")},
            )  # fmt: skip

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            serving = psutil.Process(self.serving.pid)
            return [serving, *serving.children(recursive=True)]
        return []

    def _marked(self) -> Iterator[psutil.Process]:
        """Every process that has come of the installation, wherever it hangs now."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


def _kind(process: psutil.Process) -> str | None:
    """What a process of the installation is to it."""
    with suppress(psutil.Error):
        line = process.cmdline()
        if "prefect.engine" in line:
            return "flow run"
        for words, kind in {("worker", "start"): "worker", ("server", "start"): "server"}.items():
            if line[1:5] == ["-m", "prefect", *words]:
                return kind
        if any(part.endswith("/thaw") for part in line[:2]):
            return "serve" if "serve" in line else "training" if "train" in line else None
        if any(part.endswith("guard.py") for part in line) and "thaw train" in line[-1]:
            return "guard"
    return None


def _run_of(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return process.environ().get(OF_RUN)
    return None


def _named(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"process {process.pid}: {' '.join(process.cmdline())[:160]}"
    return f"process {process.pid}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def table(found: Found) -> str:
    """What a reader wants to know, as Markdown."""
    states = ", ".join(f"{number} {state.lower()}" for state, number in sorted(found.runs.items()))
    kills = ", ".join(f"{number} of a {kind}" for kind, number in found.kills.items()) or "none"
    rows = [
        ("minutes", f"{found.minutes:.0f}"),
        ("runs", f"{sum(found.runs.values())}: {states}"),
        ("kills", f"{sum(found.kills.values())}: {kills}"),
        ("trainings asked for again", str(found.again)),
        ("stages that took more than one attempt", str(found.stages_retried)),
        ("orphaned processes", str(len(found.orphans))),
        ("arms trained to the end, and figures in their files", f"{found.tracked.finished}, {found.tracked.figures}"),
        ("figures that MLflow lost or has twice", str(len(found.tracked.lost))),
        ("steps logged once more after a kill", str(found.tracked.repeated)),
        ("disagreements of Prefect and MLflow", str(len(found.disagreements))),
        *((f"{one.role}, first and last quarter ({one.processes} in turn)", _grown(one)) for one in found.growth),
        *((kind + " left", str(number)) for kind, number in found.leftovers.items()),
    ]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _grown(one: Growth) -> str:
    memory = " to ".join(f"{value / 1e6:.0f}" for value in one.resident)
    return f"{memory} MB, {one.handles[0]:.0f} to {one.handles[1]:.0f} handles"


if __name__ == "__main__":
    main()
