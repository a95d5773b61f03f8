"""Monitors runs that another program executes (a container engine or a cluster) by polling it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from comfyloop.errors import Conflict
from comfyloop.train.run.directory import RunDirectory, Status, TrainState

LOOK_SECONDS = 2.0
"""Pause between two questions whether a run still goes on."""


class Watch:
    """Args:
    runs: Asks whether a run goes on.
    """

    def __init__(self, runs: Callable[[RunDirectory], bool]) -> None:
        self._runs = runs
        self._looked: dict[Path, tuple[float, bool]] = {}  # run -> when it was asked for, and the answer

    def take_up(self, run: RunDirectory) -> Status:
        """Mark a run as starting; returns its previous status. Raises Conflict if it is already running."""
        if self._runs(run):
            raise Conflict(
                f"The run {run.path.name} is already being worked on.", "Wait for it, or cancel it."
            )
        return run.mark_starting()

    def started(self, run: RunDirectory) -> None:
        """Discard the cached state of a run."""
        self._looked.pop(run.path, None)

    def poll(self, run_dir: Path) -> Status:
        """The status of the run; `died` if it is gone without having recorded how it ended."""
        run = RunDirectory(run_dir)
        status = run.read_status()
        if status.state.ended or status.state is TrainState.QUEUED:
            return status
        looked_at, running = self._looked.get(run.path, (0.0, True))
        if time.monotonic() - looked_at >= LOOK_SECONDS:
            running = self._runs(run)
            self._looked[run.path] = (time.monotonic(), running)
        return status if running else run.read_last_status()
