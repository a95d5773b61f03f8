"""Runs that another program computes, a container engine or a cluster, which is asked now and then."""

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
        """Mark a run as starting; its status before. Raises Conflict when it goes on already."""
        if self._runs(run):
            raise Conflict(
                f"The run {run.path.name} is already being worked on.", "Wait for it, or cancel it."
            )
        return run.mark_starting()

    def started(self, run: RunDirectory) -> None:
        """What was known of a run is no longer true."""
        self._looked.pop(run.path, None)

    def poll(self, run_dir: Path) -> Status:
        """What the run says of itself; `died` when it is gone without having said how it ended."""
        run = RunDirectory(run_dir)
        status = run.read_status()
        if status.state.ended or status.state is TrainState.QUEUED:
            return status
        looked_at, running = self._looked.get(run.path, (0.0, True))
        if time.monotonic() - looked_at >= LOOK_SECONDS:
            running = self._runs(run)
            self._looked[run.path] = (time.monotonic(), running)
        return status if running else run.read_last_status()
