"""The end of one engine call's time, so that an engine that is slow, stuck or dead is an error and never a hang."""

import math
import os
import sys
import threading
import time
from typing import Self

from components.errors import TEMPORARY_ERROR, TemporaryError

GRACE_SECONDS = 60.0  # beyond the time of a call, for the step that is under way when it ends


class Deadline:
    """Around one call of an engine that runs in this process.

    `check`, between two steps, ends a call that is slow or makes no progress. A step that never returns (a hung kernel,
    a lost rank) cannot be ended from within: a thread then says so and ends the process, and a resumed run goes on from
    its last checkpoint.
    """

    def __init__(self, engine: str, seconds: float) -> None:
        self.engine, self.seconds = engine, seconds
        self._end = time.monotonic() + seconds
        self._watchdog = threading.Timer(min(seconds + GRACE_SECONDS, threading.TIMEOUT_MAX), self._give_up)
        self._watchdog.daemon = True

    def check(self, state: str) -> None:
        """state: what the call has come to, as "3 of 4 rollouts were unfinished"."""
        if time.monotonic() > self._end:
            raise TemporaryError(
                f"the {self.engine} engine ran out of time while {state};"
                f" raise rollout.timeout_seconds = {self.seconds:g}."
            )

    def _give_up(self) -> None:
        print(
            f"\nthe {self.engine} engine is stuck: a step has not returned {GRACE_SECONDS:g} s after the end of its"
            f" rollout.timeout_seconds = {self.seconds:g}; this process ends here. Run it again to resume.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(TEMPORARY_ERROR)

    def __enter__(self) -> Self:
        if math.isfinite(self.seconds):
            self._watchdog.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._watchdog.cancel()
