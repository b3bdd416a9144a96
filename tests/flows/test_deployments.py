"""prefect.yaml through a real server and a real worker: what runs, what is refused, what a schedule starts."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.server import own_server
from tests.conftest import PROJECT
from tests.flows.conftest import Swept
from tests.flows.scratch import Scratch, until

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    """A swept project while `thaw serve` serves it."""

    project: Scratch
    client: SyncPrefectClient

    def run(self, deployment: str, **parameters: object) -> FlowRun:
        found = self.client.read_deployment_by_name(deployment)
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def ended(self, run: FlowRun, seconds: float = 180) -> str:
        """Wait for a run's end; the name of its state."""

        def final() -> str | None:
            state = self.client.read_flow_run(run.id).state
            return state.name if state and state.is_final() else None

        return until(final, seconds, 0.5)


@pytest.fixture(scope="module")
def served(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    project = swept.project.copy(tmp_path_factory.mktemp("served") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(project.prefect))
        with own_server() as url, temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            serving = project.start("env", f"PREFECT_API_URL={url}", "thaw", "serve")
            log = project.folder.with_suffix(".log")
            try:
                until(lambda: serving.poll() is not None or "Worker" in log.read_text(), 180, 0.2)
                assert serving.poll() is None, log.read_text()
                yield Served(project, client)
            finally:
                serving.terminate()
                assert serving.wait(60) == 128 + signal.SIGTERM


def test_every_deployment_is_there_with_its_pool_and_its_schedule(served: Served):
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


def test_a_deployment_runs_to_completion_and_finds_nothing_stale(served: Served):
    assert served.ended(served.run("q_sweep/nightly")) == "Completed"
    assert served.project.stale() == set()


def test_parameters_are_checked_before_anything_runs(served: Served):
    for wrong in ({"train": {"steps": 0}}, {"train": {"stepz": 3}}, {"model": {"dtype": "int8"}}):
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            served.run("q_sweep/nightly", changes=wrong)


def test_a_schedule_fires(served: Served):
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
