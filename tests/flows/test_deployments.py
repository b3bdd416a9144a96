"""prefect.yaml through a real server and a real worker: what runs, what is refused, what a schedule starts."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Pending

from tasks.lost_runs import NOTES
from tasks.server import own_server
from tasks.status import status
from tests.conftest import PROJECT
from tests.flows.conftest import Swept
from tests.flows.scratch import Scratch, trainer, until

pytestmark = pytest.mark.slow


ARM = "paft-q0.75"


@dataclass(frozen=True)
class Installation:
    """A swept project and a Prefect server."""

    project: Scratch
    client: SyncPrefectClient
    url: str

    def run(self, deployment: str, **parameters: object) -> FlowRun:
        found = self.client.read_deployment_by_name(deployment)
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def ended(self, run: FlowRun, seconds: float = 180) -> str:
        """Wait for a run's end; the name of its state."""

        def final() -> str | None:
            state = self.client.read_flow_run(run.id).state
            return state.name if state and state.is_final() else None

        return until(final, seconds, 0.5)

    @contextmanager
    def served(self) -> Iterator[subprocess.Popen[str]]:
        """`thaw serve` on this server."""
        log = self.project.folder.with_suffix(".log")
        log.unlink(missing_ok=True)
        serving = self.project.start("env", f"PREFECT_API_URL={self.url}", "thaw", "serve")
        try:
            until(lambda: serving.poll() is not None or log.read_text().count("Worker") > 0, 180, 0.2)
            assert serving.poll() is None, log.read_text()
            yield serving
        finally:
            serving.terminate()
            assert serving.wait(60) in (128 + signal.SIGTERM, 2, -signal.SIGKILL)
            assert "encountered while running hook" not in log.read_text()

    def stuck(self, serving: subprocess.Popen[str]) -> tuple[FlowRun, psutil.Process]:
        """A nightly run in whose training nothing moves any more, and the training's process."""
        self.project.untrain(ARM)
        run = self.run("q_sweep/nightly")
        training = psutil.Process(until(lambda: trainer(serving.pid), 180, 0.1))
        training.suspend()
        return run, training


@pytest.fixture(scope="module")
def installation(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    project = swept.project.copy(tmp_path_factory.mktemp("served") / "project")
    automations = project.folder / "infra/automations.yaml"
    shortened = automations.read_text().replace("within: 90", "within: 40").replace("within: 180", "within: 60")
    assert (shortened.count("within: 40"), shortened.count("within: 60")) == (1, 1)
    automations.write_text(shortened)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(project.prefect))
        with (
            own_server() as (url, _),
            temporary_settings({PREFECT_API_URL: url}),
            get_client(sync_client=True) as client,
        ):
            yield Installation(project, client, url)


@pytest.fixture(scope="module")
def serving(installation: Installation) -> Iterator[subprocess.Popen[str]]:
    with installation.served() as process:
        yield process


@pytest.fixture
def served(installation: Installation, serving: subprocess.Popen[str]) -> Installation:
    assert serving.poll() is None
    return installation


def test_every_deployment_is_there_with_its_pool_and_its_schedule(served: Installation):
    wanted = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    found = {deployment.name: deployment for deployment in served.client.read_deployments()}
    assert set(found) == {deployment["name"] for deployment in wanted}
    for deployment in wanted:
        there = found[deployment["name"]]
        assert there.work_pool_name == deployment["work_pool"]["name"]
        assert there.enforce_parameter_schema
        assert len(there.schedules) == len(deployment.get("schedules", []))
        for schedule in there.schedules:
            assert schedule.schedule.timezone == "Europe/Berlin"
            assert there.global_concurrency_limit is not None
            assert there.global_concurrency_limit.limit == 1
            assert there.concurrency_options is not None
            assert there.concurrency_options.collision_strategy == "CANCEL_NEW"


def test_a_deployment_runs_to_completion_and_finds_nothing_stale(served: Installation):
    run = served.run("q_sweep/nightly")
    assert served.ended(run) == "Completed"
    assert served.project.stale() == set()
    until(lambda: not (served.project.prefect / NOTES / str(run.id)).exists(), 30)


def test_a_run_that_is_late_is_cancelled_and_so_is_the_training_of_one_that_is_cancelled(
    served: Installation, serving: subprocess.Popen[str]
):
    first, training = served.stuck(serving)
    late = served.run("q_sweep/nightly")
    assert served.ended(late) == "Cancelled"
    assert served.client.read_flow_run(first.id).state_name == "Running"
    assert training.is_running()
    told = status(served.project.folder)
    assert (told["prefect"]["url"], told["prefect"]["trouble"]) == (served.url, None)
    assert (first.name, "q_sweep", "running") in {
        (run["name"], run["flow"], run["state"]) for run in told["prefect"]["runs"]
    }
    assert {"serve", f"sweep ({first.name})"} <= {row["what"] for row in told["work"] if row["state"] == "running"}

    served.client.set_flow_run_state(first.id, Cancelling())
    assert served.ended(first) == "Cancelled"
    until(lambda: not training.is_running(), 30)
    assert served.ended(served.run("q_sweep/nightly")) == "Completed"
    assert served.project.stale() == set()


def test_parameters_are_checked_before_anything_runs(served: Installation):
    for wrong in ({"train": {"steps": 0}}, {"train": {"stepz": 3}}, {"model": {"dtype": "int8"}}):
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            served.run("q_sweep/nightly", changes=wrong)


def test_a_schedule_fires(served: Installation):
    deployment = served.client.read_deployment_by_name("prepare/prepare")
    every = IntervalSchedule(interval=timedelta(seconds=20), anchor_date=datetime.now(UTC))
    served.client.create_deployment_schedules(deployment.id, [(every, True)])

    def fired() -> FlowRun | None:
        runs = served.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [deployment.id]}))
        return next((run for run in runs if run.auto_scheduled and run.state_name == "Completed"), None)

    try:
        assert until(fired, 180, 0.5)
    finally:
        for schedule in served.client.read_deployment_schedules(deployment.id):
            served.client.delete_deployment_schedule(deployment.id, schedule.id)


# The two that end the worker come last.


def test_with_its_worker_a_runs_training_ends_too_and_another_worker_takes_its_place(
    served: Installation, serving: subprocess.Popen[str]
):
    run, training = served.stuck(serving)
    worker(serving).kill()
    assert served.ended(run) == "Crashed"
    assert not training.is_running()
    assert served.ended(served.run("q_sweep/nightly")) == "Completed"
    assert "; it is started anew in 1 s" in served.project.folder.with_suffix(".log").read_text()
    assert served.project.stale() == set()


def test_a_run_of_which_nothing_is_left_is_found_to_have_crashed(served: Installation, serving: subprocess.Popen[str]):
    """Nobody is left who could say so: all was killed at once, as when a machine goes down."""
    run, training = served.stuck(serving)
    flow = next(process for process in training.parents() if "prefect.engine" in process.cmdline())
    ending = worker(serving)
    ending.suspend()  # so that it neither ends the flow in order nor reports its end
    serving.kill()  # which would start another worker, and tell of the run
    flow.kill()
    psutil.wait_procs([training], 30)
    assert not training.is_running()
    with suppress(psutil.NoSuchProcess):  # its guard may have done so
        ending.kill()
    assert served.ended(run) == "Crashed"
    found = served.client.read_flow_run(run.id).state
    assert found is not None
    assert found.message is not None
    assert found.message.startswith("No sign of life")
    assert served.project.run("thaw", "sweep").count("| built in ") == 3
    assert served.project.stale() == set()


def test_a_run_that_nobody_begins_is_found_to_have_crashed(installation: Installation):
    """As one that a worker had taken which was killed before the run's process began."""
    deployment = installation.client.read_deployment_by_name("prepare/prepare")
    run = installation.client.create_flow_run_from_deployment(deployment.id, state=Pending())
    assert installation.ended(run) == "Crashed"
    found = installation.client.read_flow_run(run.id).state
    assert found is not None
    assert str(found.message).startswith("Not begun")


def worker(serving: subprocess.Popen[str]) -> psutil.Process:
    below = psutil.Process(serving.pid).children(recursive=True)
    return next(process for process in below if process.cmdline()[1:5] == ["-m", "prefect", "worker", "start"])
