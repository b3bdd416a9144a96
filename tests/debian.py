"""Programs of Debian that some tests need."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def program(look: Callable[[], Path | None], package: str) -> Path:
    """What `look` finds, behind an installation where that is possible; else the test is skipped."""
    if (found := look()) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            waiting = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *command]  # for another test that installs
            subprocess.run(waiting, check=False, env=environment, stdout=subprocess.DEVNULL)
        found = look()
    if found is None:
        pytest.skip(f"needs {package} (Debian: apt-get install {package}), which is not installed here")
    return found
