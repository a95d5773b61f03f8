"""Where a training run is executed: on this machine, in a container, on a Ray cluster.

Every runner reads the same run directory and writes the same files to it, so the loop need not know which one is
used. Holding and cancelling are files in that directory and need no runner. Imports no torch.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory, Status, TrainState


class Runner(Protocol):
    """Starts and monitors runs. A run outlives the process that started it."""

    def start(self, run_dir: Path) -> None:
        """Start the run of a directory with a valid `spec.json`; it resumes if there are checkpoints.

        Raises:
            NotFound, InvalidInput: There is no spec, or it is not one.
            Conflict: The run is being worked on already.
        """
        ...

    def poll(self, run_dir: Path) -> Status:
        """The status of the run; `died` if it is gone without having recorded how it ended."""
        ...

    def end(self, run_dir: Path) -> None:
        """Kill all processes of the run; its last checkpoint is valid. No error if there are none."""
        ...

    def prepare(self, model: str, dtype: str, images: bool = False) -> None:
        """Announce that a run on this base model, in this precision, is likely soon. Returns at once."""
        ...

    def close(self) -> None:
        """Release this process's resources. Runs continue."""
        ...


class Runners:
    """Runs are started by the configured runner; each run is monitored by the runner that started it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runners: dict[str, Runner] = {}

    def start(self, run_dir: Path) -> None:
        name = self._settings.train_runner
        runner = self._runner(name)
        RunDirectory(run_dir).runner_file.write_text(name + "\n", "utf-8")
        runner.start(run_dir)

    def poll(self, run_dir: Path) -> Status:
        name = ""
        with contextlib.suppress(FileNotFoundError):
            name = RunDirectory(run_dir).runner_file.read_text("utf-8").strip()
        runner = self._runner(name or self._settings.train_runner)
        status = runner.poll(run_dir)
        if status.state.ended or status.state is TrainState.QUEUED or not self._is_overdue(run_dir):
            return status
        runner.end(run_dir)
        run = RunDirectory(run_dir)
        if run.read_status().state.ended:  # it did so itself, just now
            return run.read_status()
        seconds = self._settings.cancel_seconds
        sentence = f"The run was cancelled, and killed since it had not stopped {seconds:.0f} s later."
        ended = status.model_copy(update={"state": TrainState.CANCELLED, "error": sentence, "pid": 0})
        run.write_status(ended)
        return ended

    def _is_overdue(self, run_dir: Path) -> bool:
        """Whether cancellation was requested so long ago that the run must be hanging."""
        try:
            requested_at = RunDirectory(run_dir).cancel_file.stat().st_mtime
        except OSError:
            return False
        return time.time() - requested_at > self._settings.cancel_seconds

    def prepare(self, model: str, dtype: str, images: bool = False) -> None:
        self._runner(self._settings.train_runner).prepare(model, dtype, images)

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()

    def _runner(self, name: str) -> Runner:
        if name not in self._runners:
            self._runners[name] = _make(name, self._settings)
        return self._runners[name]


def _make(name: str, settings: Settings) -> Runner:
    match name:
        case "container":
            from comfyloop.train.runners.container import ContainerRunner

            return ContainerRunner(settings)
        case "ray":
            from comfyloop.train.runners.ray import RayRunner

            return RayRunner(settings)
        case _:
            from comfyloop.train.runners.local import LocalRunner

            return LocalRunner(settings)


def cancel(run_dir: Path | str) -> None:
    """Request that the trainer stop within one step, leaving a valid checkpoint. Idempotent."""
    file = RunDirectory(run_dir).cancel_file
    if not file.exists():  # its age says how long ago it was asked
        file.parent.mkdir(parents=True, exist_ok=True)  # it may not have been started yet
        file.touch()


def hold(run_dir: Path | str, *, by_hand: bool = False) -> None:
    """Request that the trainer pause between two micro-steps, so that people have the machine to themselves.

    Args:
        by_hand: A person said so: it holds until a person lets it go on.
    """
    run = RunDirectory(run_dir)
    run.path.mkdir(parents=True, exist_ok=True)  # it may not have been started yet
    if by_hand:
        run.held_file.touch()
    run.hold_file.touch()


def step_aside(run_dir: Path | str) -> None:
    """Have a held trainer give its memory back at once, where it may."""
    RunDirectory(run_dir).aside_file.touch()


def release(run_dir: Path | str, *, by_hand: bool = False) -> None:
    """Let a held trainer continue; if a person holds it, only a person can release it."""
    run = RunDirectory(run_dir)
    if by_hand:
        run.held_file.unlink(missing_ok=True)
    if not run.held_file.exists():
        run.hold_file.unlink(missing_ok=True)
        run.aside_file.unlink(missing_ok=True)
