"""Notes on flow runs: held while their process lives, gone when they have ended, left behind by what was killed."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_HOME, temporary_settings
from prefect.states import Completed, Running

from flows.sweep import backfill, post_train, prepare, q_sweep
from tasks.lost_runs import NOTES, lost_runs, sign, strike
from tests.conftest import PROJECT

KILLED = """
import os, sys
from uuid import UUID
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running
from flows.sweep import prepare
from tasks.lost_runs import sign
sign(prepare, FlowRun(id=UUID(sys.argv[1]), flow_id=UUID(sys.argv[1])), Running())
os.kill(os.getpid(), 9)
"""


def test_a_note_is_of_a_lost_run_if_its_process_was_killed_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    killed, run = uuid4(), FlowRun(flow_id=uuid4())
    done = subprocess.run([sys.executable, "-c", KILLED, str(killed)], cwd=PROJECT, check=False)
    assert done.returncode == -9
    with temporary_settings({PREFECT_HOME: tmp_path}):
        sign(prepare, run, Running())
        assert lost_runs() == [killed]
        strike(prepare, run, Completed())
        assert lost_runs() == [killed]
    assert [path.name for path in (tmp_path / NOTES).iterdir()] == [str(killed)]


def test_every_flow_has_its_note_until_it_ends() -> None:
    for flow in (prepare, post_train, q_sweep, backfill):
        assert flow.on_running_hooks == [sign]
        assert flow.on_completion_hooks == flow.on_failure_hooks == [strike]
        assert flow.on_cancellation_hooks == flow.on_crashed_hooks == [strike]
