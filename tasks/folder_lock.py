"""Who works in a folder keeps it locked, so that nobody clears it up meanwhile.

The kernel lifts the lock however a process ends, and it leaves no file behind.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in a folder, which is made where it is missing, beside others who do; whoever clears it up is waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, where nothing is cleared up either
            fcntl.flock(place, fcntl.LOCK_SH)
        yield
    finally:
        os.close(place)


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Whether nobody works in a folder; whoever wants to has to wait for as long as this lasts."""
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(place)
