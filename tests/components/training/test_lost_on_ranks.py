"""Two processes that share a server lose it, and then the first of them: both runs go on as if nothing had been."""

import re
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from components.policy.base import make_base
from tasks.inputs import make_data
from tests.components.processes import run
from tests.conftest import small_settings


@pytest.mark.slow
def test_a_killed_server_and_a_killed_process_are_told_and_resume_gives_the_same_weights(
    empty_database: Path, tmp_path: Path
) -> None:
    settings = small_settings()
    make_data(settings, tmp_path / "data")
    make_base(settings, tmp_path / "base")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    module = "tests.components.training.killed_on_ranks"

    (status, first), (_, second) = run(2, module, tmp_path, "killed", timeout=1200)
    for said in (first, second):
        assert "undisturbed: None\n" in said, said
        assert re.search(r"without the server: the vLLM server at http://127\.0\.0\.1:\d+ is gone .* resume", said), (
            said
        )
    assert status == -signal.SIGKILL
    assert re.search(r"without the other: another training process of this run is gone: .* resume", second), second
    [pids] = re.findall(r"^pids: (.*)$", first, re.MULTILINE)
    assert _all_end(map(int, pids.split()))

    for status, said in run(2, module, tmp_path, "resumed", timeout=600):
        assert (status, said.count("resumed: None\n")) == (0, 1), said
    undisturbed, killed = (tmp_path / name / "final" / "model.safetensors" for name in ("undisturbed", "killed"))
    assert killed.read_bytes() == undisturbed.read_bytes()
    assert killed.read_bytes() != (tmp_path / "base" / "model.safetensors").read_bytes()


def _all_end(pids: "map[int]") -> bool:
    """Whether all processes are gone within a minute."""
    left, deadline = list(pids), time.monotonic() + 60
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if psutil.pid_exists(pid)]
        time.sleep(0.1)
    return not left
