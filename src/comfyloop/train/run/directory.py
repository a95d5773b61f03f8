"""The run directory: the files that a training process writes while it runs and when it ends.

One process writes, any number read. Liveness is a lock, not a process id: the trainer holds `run.lock` for its
whole lifetime, and the kernel releases it however the process ends, so a reused process id causes no error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from comfyloop import platforms
from comfyloop.complaints import in_words
from comfyloop.durable import appear, replace_whole
from comfyloop.errors import StorageError
from comfyloop.records import Record, now

LOCK_VARIABLE = "COMFYLOOP_RUN_LOCK"
"""Environment variable by which the runner hands the lock down, so that no moment is unlocked."""


TEXT, IMAGE = "text", "image"
"""The sides of a joint run."""


class TrainState(StrEnum):
    QUEUED = "queued"  # nothing has started it yet
    STARTING = "starting"  # loading libraries, data and model
    RUNNING = "running"  # taking steps
    HOLDING = "holding"  # paused between two micro-steps by the file `hold`
    SUCCEEDED = "succeeded"  # adapter/ is whole
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"  # stopped by the file `cancel`; its last checkpoint is valid
    DIED = "died"  # never written: the process is gone without a last word (kill -9, out of memory)

    @property
    def ended(self) -> bool:
        return self in {self.SUCCEEDED, self.FAILED, self.CANCELLED, self.DIED}


MOST_LEFT_OUT = 100
"""Rows that a status names; more are counted."""


class LeftOut(Record):
    """A row that cannot be trained on, and why, as the end of a sentence about it."""

    file: str
    line: int
    sample: str
    reason: str


class Status(Record):
    state: TrainState = TrainState.QUEUED
    phase: str = ""  # what it is doing, for a person: "reading data", "loading the model"
    pid: int = 0
    pid_start_time: float = 0.0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eta_seconds: float | None = None
    error: str = ""
    exit_code: int = 0
    left_out: tuple[LeftOut, ...] = ()  # rows that could not be trained on, where these are skipped
    left_out_count: int = 0
    warnings: tuple[str, ...] = ()  # what a person should know of the data, as sentences
    memory_bytes: int = 0  # of the device, that it took at most
    freed_bytes: int = 0  # of them, that it has given back while it is held
    held_seconds: float = 0.0
    aside_seconds: float = 0.0  # that giving memory back and having it again took
    trainable_parameters: int = 0
    total_parameters: int = 0
    updated_at: datetime = Field(default_factory=now)


class RunDirectory:
    """Paths of a run, and methods that write its files atomically."""

    def __init__(self, path: Path | str) -> None:
        self.path = self._base = Path(path).resolve()
        self.status_file = self.path / "status.json"
        self.log_file = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"  # instead of the adapter, where the weights themselves are trained
        self.reference = self.path / "reference.safetensors"
        self.sampled = self.path / "sampled.jsonl"  # what the student of `sdft` answered
        self.row_losses = self.path / "row_losses.json"  # sample id -> nats a token when it was last passed
        self.step_rows = self.path / "step_rows.jsonl"  # of each step, sample id -> nats a token in it
        self.tensorboard = self.path / "tb"
        self.cancel_file = self.path / "cancel"
        self.hold_file = self.path / "hold"
        self.held_file = self.path / "held"  # beside `hold`: a person holds it
        self.aside_file = self.path / "aside"  # beside `hold`: others need the memory now
        self.parked_file = (
            self.path / "parked.bin"
        )  # what a held run has given back, where no memory is beside its own
        self.output_file = self.path / "train.out"
        self.lock_file = self.path / "run.lock"
        self.runner_file = self.path / "runner"

    def resolve(self, path: str) -> Path:
        """A path of the spec: absolute, or relative to the run directory."""
        return self._base / path

    def side(self, name: str) -> RunDirectory:
        """Where one side of a joint run has its checkpoints and adapter."""
        side = RunDirectory(self.path / name)
        side.path.mkdir(exist_ok=True)
        side._base = self.path
        return side

    def join(self, sides: Sequence[RunDirectory]) -> None:
        """Create `adapter/` from the sides' adapters, each under its side's name, atomically."""

        def write(making: Path) -> None:
            for side in sides:
                shutil.copytree(side.adapter, making / side.path.name)

        try:
            appear(self.adapter, write)
        except OSError as error:
            raise disk_error(self.adapter, error) from error

    def write_status(self, status: Status) -> None:
        text = status.model_copy(update={"updated_at": now()}).model_dump_json(indent=2)
        write_atomically(self.status_file, text.encode() + b"\n", durable=status.state.ended)

    def read_status(self) -> Status:
        """The last written status; queued if there is none."""
        try:
            return Status.model_validate_json(self.status_file.read_bytes())
        except FileNotFoundError:
            return Status()
        except ValidationError as error:
            raise StorageError(
                f"{self.status_file} is not a status: {in_words(error.errors(), 'the file')}.",
                "Delete it and start the run again: it goes on from its last checkpoint.",
            ) from None

    def mark_starting(self) -> Status:
        """Mark that a process is about to start the run, and clear a cancellation; returns the previous status."""
        status = self.read_status()
        if status.state is TrainState.CANCELLED:
            self.cancel_file.unlink(missing_ok=True)
        self.write_status(status.model_copy(update={"state": TrainState.STARTING, "error": "", "pid": 0}))
        return status

    def read_last_status(self) -> Status:
        """The status of a run that no process works on: `died` unless it recorded how it ended."""
        status = self.read_status()
        if status.state.ended:
            return status
        return status.model_copy(
            update={
                "state": TrainState.DIED,
                "error": status.error
                or f"The training process died at step {status.step} of {status.total_steps} without a "
                f"word: it was killed, or memory ran out. {self.output_file} holds its last output. "
                "Start the run again: it goes on from its last checkpoint.",
            }
        )

    def lock(self, patience: float = 0.2) -> int | None:
        """Lock the run for this process; None if another process holds it for `patience` seconds.

        The lock is held for as long as the descriptor is open, so keep it until the end.
        """
        if handed_down := os.environ.pop(LOCK_VARIABLE, ""):
            return platforms.take_over(handed_down, self.lock_file)
        return platforms.lock(
            self.lock_file, patience
        )  # some patience: `is_locked` holds it for a moment too

    def is_locked(self) -> bool:
        """Whether a process is working on this run now."""
        return platforms.is_locked(self.lock_file)

    def read_row_losses(self) -> dict[str, float]:
        """The loss in nats per token of each sample on the run's last pass; empty if the run has not ended."""
        try:
            return {str(id): float(loss) for id, loss in json.loads(self.row_losses.read_bytes()).items()}
        except (
            OSError,
            ValueError,
            AttributeError,
        ):  # only a hint: without it samples are chosen by coverage
            return {}

    def rows_of(self, step: int, side: str = "") -> dict[str, float]:
        """Sample ids with their losses in a step, as it was last taken; empty where that was not written down."""
        found: dict[str, float] = {}
        try:
            with self.step_rows.open("rb") as file:
                for line in file:
                    try:
                        told = json.loads(line)
                        if told["step"] == step and told.get("side", "") == side:
                            found = {str(id): float(loss) for id, loss in told["rows"].items()}
                    except (ValueError, KeyError, TypeError, AttributeError):  # cut off by a kill
                        continue
        except OSError:
            return {}
        return found

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """The complete lines of log.jsonl; a line that is still being written is left for the next call."""
        try:
            text = self.log_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        *whole, _ = text.split("\n")
        for line in whole:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file so that readers see either the old content or the new, even after a kill at any moment.

    `durable` waits for the disk, so that a power cut does not undo it.
    """
    try:
        replace_whole(path, lambda part: part.write_bytes(data), durable=durable)
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}.",
        "Free some disk space or correct the permissions, then start the run again: "
        "it goes on from its last checkpoint.",
    )
