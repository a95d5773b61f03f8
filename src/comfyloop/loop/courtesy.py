"""Answers first: training holds while a person waits for this machine, and goes on after a quiet time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from comfyloop.train import runners


class Courtesy:
    """Looks now and then whether a run should hold, and tells it when that changes.

    Args:
        quiet_seconds: How long nobody has waited for anything.
        patience: The run goes on after so many quiet seconds; 0: it never holds.
    """

    def __init__(self, quiet_seconds: Callable[[], float], patience: float) -> None:
        self._quiet_seconds = quiet_seconds
        self._patience = patience
        self._held: bool | None = None  # not known: a former controller may have held it

    def look(self, run_dir: Path) -> None:
        hold = self._quiet_seconds() < self._patience
        if hold == self._held:
            return
        if hold:
            runners.hold(run_dir)
        else:
            runners.release(run_dir)
        self._held = hold
