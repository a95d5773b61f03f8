"""Training yields to people: it pauses while requests are in flight, and resumes after a quiet period."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from comfyloop.train import runners

LONGEST_HOLD_SECONDS = 60.0
BREATH_SECONDS = 5.0
"""Where somebody always waits, training goes on for so long after each hold of that length: it ends some day."""


class TrainingThrottle:
    """Periodically checks whether a run should pause, and notifies it when that changes.

    Args:
        quiet_seconds: How long nobody has waited for anything.
        patience: The run goes on after so many quiet seconds; 0: it never holds.
        lacking: Bytes of the device's memory that others wait for: then a held run gives its own back at once, and
            does not breathe.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        quiet_seconds: Callable[[], float],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        lacking: Callable[[], int] = lambda: 0,
    ) -> None:
        self._lacking = lacking
        self._quiet_seconds = quiet_seconds
        self._patience = patience
        self._clock = clock
        self._held: bool | None = None  # not known: a former controller may have held it
        self._since = clock()
        self._breathing = False

    def update(self, run_dir: Path) -> None:
        wanted = self._quiet_seconds() < self._patience
        lasted = self._clock() - self._since
        lacking = self._lacking() > 0
        if self._held and wanted and lacking:
            runners.step_aside(run_dir)
            return
        if self._held and lasted > LONGEST_HOLD_SECONDS:
            hold, self._breathing = False, True
        elif self._breathing and lasted < BREATH_SECONDS:
            hold = False
        else:
            hold, self._breathing = wanted, False
        if hold == self._held:
            return
        if hold:
            runners.hold(run_dir)
        else:
            runners.release(run_dir)
        self._held, self._since = hold, self._clock()
