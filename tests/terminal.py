"""A real terminal for tests, of 120 columns: what is written to it, and what a person would see."""

import fcntl
import os
import struct
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


class Terminal:
    """`file` is what programs write to."""

    def __init__(self) -> None:
        reads, written = os.openpty()
        fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.file = os.fdopen(written, "w", buffering=1, encoding="utf-8")
        self._said = ThreadPoolExecutor(1).submit(self._read, reads)

    def close(self, seconds: float = 10) -> str:
        """All that was written to it, once nobody has it open any more."""
        self.file.close()
        return self._said.result(seconds)

    @staticmethod
    def _read(reads: int) -> str:
        said = b""
        with suppress(OSError):  # which is how it says that nobody writes any more
            while part := os.read(reads, 4096):
                said += part
        os.close(reads)
        return said.decode()
