"""Who has interactive work on this machine: while anyone has, training holds and gives back what it can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_SECONDS = 60.0
"""A client says again and again that it is busy; one that died is forgotten after so long at most."""


class ActivitySignal:
    """Leases of a few seconds each, kept in memory: they do not outlive the service, nor need to.

    Args:
        clock: Seconds that only grow; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    def say(self, who: str, seconds: float) -> None:
        """`who` is busy for so many seconds from now (`LONGEST_SECONDS` at most); 0: no longer."""
        with self._lock:
            if seconds > 0:
                self._until[who] = self._clock() + min(seconds, LONGEST_SECONDS)
            else:
                self._until.pop(who, None)

    def who(self) -> list[str]:
        """Everyone who is busy now, in alphabetical order; empty when training may go on."""
        with self._lock:
            now = self._clock()
            self._until = {who: until for who, until in self._until.items() if until > now}
            return sorted(self._until)
