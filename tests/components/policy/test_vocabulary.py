"""Memory at a large vocabulary: each way in a process of its own, since a peak is never given back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_log_probabilities_take_under_a_quarter_of_the_plain_ways_memory(project: Path) -> None:
    plain, chunked = (
        json.loads(
            subprocess.run(
                [sys.executable, "-m", "tests.components.policy.vocabulary", way],
                cwd=project, env=os.environ, check=True, capture_output=True, text=True, timeout=300,
            ).stdout.splitlines()[-1]
        )
        for way in ("plain", "chunked")
    )  # fmt: skip
    assert plain["peak"] > 2 * 1024 * 151_936 * 4
    assert chunked["peak"] < plain["peak"] / 4
    assert chunked["sums"] == pytest.approx(plain["sums"], rel=1e-4)
