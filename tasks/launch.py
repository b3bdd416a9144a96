"""Work on several processes: this command again, on all of them, by DeepSpeed's launcher."""

import os
import shlex
import sys
from collections.abc import Sequence

from components.addresses import free_port
from components.config import ComputeSettings
from components.errors import TemporaryError
from tasks.process import end_guarded, start_guarded


def needs_launch(compute: ComputeSettings) -> bool:
    """Whether the settings ask for several processes and this is none of them."""
    return (compute.processes > 1 or compute.hostfile is not None) and "RANK" not in os.environ


def launch(compute: ComputeSettings, arguments: Sequence[str]) -> int:
    """Run `thaw ARGUMENTS` on compute.processes processes of this host, or of each one in compute.hostfile.

    Returns the exit status: that of the first process that failed, or 0. They end with this process, however it does.

    Raises:
        TemporaryError: a process was killed.
    """
    place = [f"--num_gpus={compute.processes}", f"--master_port={free_port('')}"]
    if compute.hostfile is not None:
        place = [f"--hostfile={compute.hostfile}"]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *place, "--no_local_rank", "--module", "flows.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": str(compute.threads)}
    process = start_guarded(f"exec {shlex.join([*command, *arguments])}", env=environment)
    try:
        status = process.wait()
    finally:
        end_guarded(process)
    if status > 192:  # 256 - N, as the launcher passes on that signal N has ended a process
        raise TemporaryError(
            f"a training process was killed by signal {256 - status}; run it again to resume from the last checkpoint."
        )
    return status
