"""What Prefect's server says of flow runs: those that go on, that wait, and the one that failed last."""

import os
from pathlib import Path
from typing import Any

from components.addresses import shown
from components.errors import UserError

ANSWER_SECONDS = 5.0
MOST = 20  # runs of a state


def flow_runs(serving: str | None) -> dict[str, Any] | None:
    """`url`, `runs`, and `trouble`, why it could not be asked; None where no server is known.

    serving: the API of a server that is known to run; by default the configured one.
    """
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if serving is None and "PREFECT_API_URL" not in os.environ and not (home / "profiles.toml").is_file():
        return None  # and Prefect's client, which takes seconds to load, makes no folder
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.server import configured_server

    url = serving or PREFECT_API_URL.value()
    if url is None:
        return None
    row: dict[str, Any] = {"url": shown(url), "runs": [], "trouble": None}
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            configured_server()
            return row | {"runs": _runs()}
        except UserError as error:
            return row | {"trouble": str(error)}


def _runs() -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    first, last = FlowRunSort.EXPECTED_START_TIME_ASC, FlowRunSort.END_TIME_DESC
    wanted = [
        (["RUNNING", "PENDING", "PAUSED", "CANCELLING"], first, MOST),
        (["SCHEDULED"], first, MOST),
        (["FAILED", "CRASHED"], last, 1),
    ]
    quick = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}
    found = []
    with temporary_settings(quick), get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        for types, order, most in wanted:
            kinds = FlowRunFilterStateType(any_=[StateType(name) for name in types])
            these = FlowRunFilter(state=FlowRunFilterState(type=kinds))
            found += client.read_flow_runs(flow_run_filter=these, sort=order, limit=most)
    return [
        {
            "flow": flows.get(run.flow_id, ""),
            "name": run.name,
            "state": (run.state_name or "").lower(),
            "at": (run.end_time or run.start_time or run.expected_start_time or run.created).isoformat(),
            "message": (run.state.message if run.state else None) or "",
        }
        for run in found
    ]
