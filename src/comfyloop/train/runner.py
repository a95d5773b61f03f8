"""Start a training process and watch it from another one. Imports no torch.

The trainer lives in a session of its own, so it outlives the service that started it: a service that comes
back polls the run directory and finds it still running.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from comfyloop.errors import Conflict
from comfyloop.records import Record
from comfyloop.train.spec import read_spec
from comfyloop.train.status import LOCK_FD_VARIABLE, RunDirectory, Status, TrainState


class Process(Record):
    """A training process; `start_time` (seconds since 1970) tells it from a later one with the same id."""

    pid: int
    start_time: float


def start(run_dir: Path | str, *, environment: Mapping[str, str] | None = None) -> Process:
    """Start `python -m comfyloop.train RUN_DIR` in the background; it resumes when there are checkpoints.

    Args:
        run_dir: Directory with a valid `spec.json`.
        environment: Variables to add to this process's own.

    Raises:
        NotFound, InvalidInput: there is no spec, or it is not one.
        Conflict: a process is working on this run already.
    """
    run = RunDirectory(run_dir)
    read_spec(run.path)
    ended = run.read_status().state.ended
    lock = run.lock(patience=10 if ended else 0.2)  # an ended trainer may still be on its way out
    if lock is None:
        raise Conflict(f"The run {run.path.name} is already being worked on.", "Wait for it, or cancel it.")
    try:
        if run.read_status().state is TrainState.CANCELLED:
            run.cancel_file.unlink(missing_ok=True)  # starting a cancelled run takes the cancellation back
        run.write_status(run.read_status().model_copy(update={"state": TrainState.STARTING, "error": ""}))
        with run.output_file.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "comfyloop.train", str(run.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
                env={**os.environ, **(environment or {}), LOCK_FD_VARIABLE: str(lock)},
            )
    finally:
        os.close(lock)  # the child's copy keeps the lock for as long as the child lives
    _children[child.pid] = child
    try:
        start_time = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:
        start_time = time.time()
    return Process(pid=child.pid, start_time=start_time)


def poll(run_dir: Path | str) -> Status:
    """What the run says of itself, or `died` when its process is gone without having said how it ended."""
    run = RunDirectory(run_dir)
    _reap()
    status = run.read_status()
    if status.state.ended or status.state is TrainState.QUEUED or run.is_locked():
        return status
    status = run.read_status()  # it may have ended between the two looks
    if status.state.ended:
        return status
    return status.model_copy(
        update={
            "state": TrainState.DIED,
            "error": f"The training process died at step {status.step} of {status.total_steps} without a "
            f"word: it was killed, or memory ran out. {run.output_file} holds its last output. "
            "Start the run again: it goes on from its last checkpoint.",
        }
    )


def cancel(run_dir: Path | str) -> None:
    """Ask the trainer to stop within one step, leaving a valid checkpoint. Asking twice is no error."""
    RunDirectory(run_dir).cancel_file.touch()


def hold(run_dir: Path | str) -> None:
    """Ask the trainer to pause between two micro-steps, so that the person has the machine for themselves."""
    RunDirectory(run_dir).hold_file.touch()


def release(run_dir: Path | str) -> None:
    """Let a held trainer go on."""
    RunDirectory(run_dir).hold_file.unlink(missing_ok=True)


def wait(run_dir: Path | str, timeout: float, interval: float = 0.1) -> Status:
    """Poll until the run has ended; raises TimeoutError with what it was doing after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (status := poll(run_dir)).state.ended:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run_dir} is still {status.state} at step {status.step} after {timeout} s")
        time.sleep(interval)
    return status


def follow(run_dir: Path | str, interval: float = 0.2) -> Iterator[dict[str, Any]]:
    """The log's lines as they come, each step once, until the run has ended (or died)."""
    run = RunDirectory(run_dir)
    seen = -1
    while True:
        ended = poll(run.path).state.ended  # before reading, so that the last lines are not missed
        for line in run.log_lines():
            if line["step"] > seen:
                seen = line["step"]
                yield line
        if ended:
            return
        time.sleep(interval)


_children: dict[int, subprocess.Popen[bytes]] = {}


def _reap() -> None:
    """Collect children that have ended, so that they do not stay as zombies."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            with contextlib.suppress(KeyError):
                del _children[pid]
