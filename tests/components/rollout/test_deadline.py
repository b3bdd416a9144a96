"""Time limits of engines in this process."""

import subprocess
import sys

import pytest

from components.errors import TEMPORARY_ERROR, TemporaryError
from components.rollout.deadline import Deadline


def test_a_slow_call_is_an_error_that_names_the_engine() -> None:
    message = r"the Transformers engine ran out of time while 3 of 4 .* rollout\.timeout_seconds = 0"
    with Deadline("Transformers", 0.0) as deadline, pytest.raises(TemporaryError, match=message):
        deadline.check("3 of 4 rollouts were unfinished")


def test_a_step_that_never_returns_ends_the_process_and_says_why() -> None:
    code = (
        "import time; from components.rollout import deadline; deadline.GRACE_SECONDS = 0.1\n"
        "with deadline.Deadline('vLLM', 0.1): time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == TEMPORARY_ERROR
    assert "the vLLM engine is stuck" in done.stderr
    assert "resume" in done.stderr
