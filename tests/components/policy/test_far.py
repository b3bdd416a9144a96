"""Scoring, learning and sampling leave no tensor behind on the CPU."""

import subprocess
import sys


def test_a_model_on_another_device_is_scored_trained_and_sampled_there() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.components.policy.far"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
