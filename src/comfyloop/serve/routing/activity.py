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
        self._until: dict[str, tuple[float, int]] = {}

    def say(self, who: str, seconds: float, memory_bytes: int = 0) -> None:
        """`who` is busy for so many seconds from now (`LONGEST_SECONDS` at most); 0: no longer.

        Args:
            memory_bytes: Of the device's memory, that it lacks for its work.
        """
        with self._lock:
            if seconds > 0:
                self._until[who] = self._clock() + min(seconds, LONGEST_SECONDS), memory_bytes
            else:
                self._until.pop(who, None)

    def who(self) -> list[str]:
        """Everyone who is busy now, in alphabetical order; empty when training may go on."""
        return sorted(self._now())

    def memory_bytes(self) -> int:
        """What those who are busy now lack of the device's memory."""
        return sum(lacking for _, lacking in self._now().values())

    def _now(self) -> dict[str, tuple[float, int]]:
        with self._lock:
            now = self._clock()
            self._until = {who: told for who, told in self._until.items() if told[0] > now}
            return dict(self._until)
