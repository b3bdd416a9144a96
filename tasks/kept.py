"""A process that is kept running: ended, it is started anew."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from components.errors import UserError
from components.progress import say
from tasks.process import Process, end_guarded

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before it is started anew; each time in a row twice as long
WELL = 60.0  # seconds after which its earlier ends count no more
MOST = 8  # ends in a row that are put up with


class Kept:
    """A guarded process (see `start_guarded`) and what to start anew when it ends.

    log: where it writes what it says; our own output by default.
    """

    def __init__(self, name: str, start: Callable[[], Process], log: Path | None = None) -> None:
        self.name, self._start = name, start
        self._why = "its last lines above say why" if log is None else f"{log} says why"
        self._ends = 0  # in a row
        self._due: float | None = None  # when it is started anew, if it has ended
        self._began, self._process = time.monotonic(), start()

    @property
    def pid(self) -> int:
        """Of its guard; another one each time that it is started."""
        return self._process.pid

    def runs(self) -> bool:
        """Whether it runs at this moment."""
        return self._process.poll() is None

    def look(self) -> bool:
        """See to it; tells whether it was started anew. To be called again and again.

        Raises:
            UserError: it has ended too often in a row.
        """
        now = time.monotonic()
        if self.runs():
            self._ends = 0 if now - self._began > WELL else self._ends
            return False
        if self._due is None:
            self._due = now + self._pause()
        if now < self._due:
            return False
        self._began, self._due, self._process = now, None, self._start()
        return True

    def _pause(self) -> float:
        with suppress(ProcessLookupError):  # what it has left behind, were its guard killed
            os.killpg(self._process.pid, signal.SIGKILL)
        self._ends += 1
        if self._ends > MOST:
            raise UserError(f"{self.name} has ended {self._ends} times in a row; {self._why}.")
        pause = min(FIRST_PAUSE * 2 ** (self._ends - 1), LONGEST_PAUSE)
        say(f"{self.name} has ended ({self._process.returncode}); it is started anew in {pause:g} s")
        return pause

    def end(self) -> None:
        """End the process, and all that it has started."""
        end_guarded(self._process)
