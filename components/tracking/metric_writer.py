"""Metrics on their way to the store, from a thread of their own."""

import threading
import time
from collections.abc import Callable

from mlflow.entities import Metric
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from components.tracking.store import LONGEST_PAUSE
from components.tracking.trouble import is_outage

FLUSH_SECONDS = 3.0  # how old a metric may get before it is sent


class MetricWriter:
    """Sends metrics from a thread of its own, so that a slow or absent store never holds up training."""

    def __init__(self, send: Callable[[list[Metric]], object]):
        self.refusal: Exception | None = None  # why the store will never take these metrics
        self._send = send
        self._pending: list[Metric] = []  # extended here, cut by the thread; both are atomic
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._hurry = threading.Event()  # do not wait for the next few seconds to pass
        self._thread = threading.Thread(target=self._work, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def put(self, metrics: list[Metric]) -> None:
        """Leave metrics to the thread; it returns at once."""
        self._pending.extend(metrics)

    def flush(self, limit: float) -> None:
        """Wait until all is sent or refused, but at most `limit` seconds."""
        deadline = time.monotonic() + limit
        self._hurry.set()
        while self._pending and not self.refusal and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, limit: float) -> int:
        """Send what is left for at most `limit` seconds; returns how many values could not be sent."""
        self._closing.set()
        self._hurry.set()
        self._thread.join(limit)
        self._abandoned.set()
        return len(self._pending)

    def _work(self) -> None:
        closing = False
        while not closing:
            self._hurry.wait(FLUSH_SECONDS)
            self._hurry.clear()
            closing = self._closing.is_set()  # nothing is put after it
            while batch := self._pending[:MAX_METRICS_PER_BATCH]:
                if not self._delivered(batch):
                    return
                del self._pending[: len(batch)]

    def _delivered(self, batch: list[Metric]) -> bool:
        pause = 0.5
        while True:
            try:
                self._send(batch)
                return True
            except Exception as error:  # whatever it is: nobody hears of it in this thread
                if not is_outage(error):
                    self.refusal = error
                    return False
            if self._abandoned.wait(pause):
                return False
            pause = min(2 * pause, LONGEST_PAUSE)
