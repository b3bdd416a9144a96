"""Weights are written once and never changed: equal ones are one file under several names, where the disk can do that.

It is read-only, for to write into it would change the weights under every name; whoever replaces them gives the name to
a new file. All other files of a model are small, people edit them, and they are copied.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

WEIGHTS = ".safetensors"


def copy_model(source: Path, target: Path) -> None:
    """Copy the folder of a model to `target`, which is missing or empty; its weights are linked where that works."""
    shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(WEIGHTS):
        with suppress(OSError):  # another disk, one without links, or a file of somebody else
            os.link(os.path.realpath(source), target)
            with suppress(PermissionError):
                os.chmod(target, 0o444)
            return
    shutil.copyfile(source, target)
