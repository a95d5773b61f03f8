"""Whether a person waits for this machine now: for an answer, or for a program that says that it is busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from comfyloop.serve.routing.activity import ActivitySignal


class Traffic:
    """Thread-safe. `enter` and `leave` go around every answer to a person; what the loop itself asks of the
    engine does not count.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.busy = ActivitySignal(clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = 0
        self._last = float("-inf")

    def enter(self) -> None:
        with self._lock:
            self._waiting += 1

    def leave(self) -> None:
        with self._lock:
            self._waiting -= 1
            self._last = self._clock()

    @property
    def waiting(self) -> int:
        """Answers to people that are under way."""
        with self._lock:
            return self._waiting

    def quiet_seconds(self) -> float:
        """How long nobody has waited for anything, as often as it is asked; 0 while somebody does."""
        busy = self.busy.who()
        with self._lock:
            if self._waiting or busy:
                self._last = self._clock()
            return self._clock() - self._last
