"""Training processes on this machine. Imports no torch.

The trainer runs in its own session, so it outlives the service that started it: a restarted service polls the run
directory and finds it still running.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from comfyloop import platforms
from comfyloop.errors import Conflict
from comfyloop.records import Record
from comfyloop.settings import Settings
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.run.control import ask_for_large_pages
from comfyloop.train.run.directory import LOCK_VARIABLE, RunDirectory, Status, TrainState
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.files import SPEC_FILE, read_spec, write_spec

KILL_SECONDS = 10.0


class Process(Record):
    """A training process; `start_time` (seconds since 1970) tells it from a later one with the same id."""

    pid: int
    start_time: float


class LocalRunner:
    """Runs as processes on this machine, forked from a warm trainer if the settings enable it."""

    def __init__(self, settings: Settings) -> None:
        # ms-swift starts by itself
        can_be_warm = settings.warm_trainer and settings.train_engine == "comfyloop" and platforms.can_fork()
        self.warm = WarmTrainer(settings.warm_minutes) if can_be_warm else None

    def start(self, run_dir: Path) -> None:
        start(run_dir, warm=self.warm)

    def poll(self, run_dir: Path) -> Status:
        return poll(run_dir)

    def end(self, run_dir: Path) -> None:
        kill(run_dir, spare={self.warm.pid} if self.warm is not None else set())

    def prepare(self, model: str, dtype: str, images: bool = False) -> None:
        if self.warm is not None:
            self.warm.prepare(model, dtype, images)

    def close(self) -> None:
        if self.warm is not None:
            self.warm.close()


def start(
    run_dir: Path | str, *, environment: Mapping[str, str] | None = None, warm: WarmTrainer | None = None
) -> Process:
    """Start `python -m comfyloop.train RUN_DIR` in the background; it resumes when there are checkpoints.

    Args:
        run_dir: Directory with a valid `spec.json`.
        environment: Variables to add to this process's own.
        warm: Fork the run from there if that can be done, which saves importing libraries and reading weights.

    Raises:
        NotFound, InvalidInput: There is no spec, or it is not one.
        Conflict: A process is working on this run already.
    """
    run = RunDirectory(run_dir)
    spec = read_spec(run.path)
    lock = _take_up(run)
    variables = dict(environment or {})
    try:
        with run.output_file.open("ab") as output:
            pid = None
            if warm is not None:
                pid = warm.fork(run, spec, lock, output.fileno(), variables)
            if pid is None:
                pid = _start_cold(run, lock, output, variables)
    finally:
        os.close(lock)  # the trainer's copy keeps the lock for as long as the trainer lives
    try:
        start_time = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        start_time = time.time()
    return Process(pid=pid, start_time=start_time)


def run_here(run_dir: Path, spec: RunSpec) -> int:
    """Train in the foreground, with output to this terminal; the exit code. Ctrl-C stops it resumably.

    Raises:
        Conflict: The directory holds a run of another spec.
    """
    if (run_dir / SPEC_FILE).exists() and read_spec(run_dir) != spec:
        raise Conflict(
            f"{run_dir} holds a run of another spec.",
            "Name another directory with --output, or give the same options to go on with that run.",
        )
    write_spec(run_dir, spec)
    RunDirectory(run_dir).cancel_file.unlink(missing_ok=True)  # starting it again takes a cancellation back
    with subprocess.Popen([sys.executable, "-m", "comfyloop.train", str(run_dir)]) as child:
        while child.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):  # the terminal sent it to the trainer too
                child.wait()
    return child.returncode


def _take_up(run: RunDirectory) -> int:
    """Lock a run and mark it as starting; the descriptor of the lock. Raises Conflict if it is locked."""
    ended = run.read_status().state.ended
    lock = run.lock(patience=30 if ended else 0.2)  # an ended trainer may still be on its way out
    if lock is None:
        raise Conflict(f"The run {run.path.name} is already being worked on.", "Wait for it, or cancel it.")
    run.mark_starting()
    return lock


def _start_cold(run: RunDirectory, lock: int, output: BinaryIO, environment: Mapping[str, str]) -> int:
    down = platforms.HandedDown(lock, LOCK_VARIABLE)
    child = subprocess.Popen(
        [sys.executable, "-m", "comfyloop.train", str(run.path)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=ask_for_large_pages({**os.environ, **environment, **down.environment}),
        **platforms.apart(),
        **down.options,
    )
    _children[child.pid] = child
    down.wait(child)
    return child.pid


def poll(run_dir: Path | str) -> Status:
    """The status of the run, or `died` if its process is gone without having recorded how it ended."""
    run = RunDirectory(run_dir)
    _reap()
    status = run.read_status()
    if status.state.ended or status.state is TrainState.QUEUED or run.is_locked():
        return status
    return run.read_last_status()


def wait(run_dir: Path | str, timeout: float, interval: float = 0.1) -> Status:
    """Poll until the run has ended; raises TimeoutError with what it was doing after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (status := poll(run_dir)).state.ended:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run_dir} is still {status.state} at step {status.step} after {timeout} s")
        time.sleep(interval)
    return status


def follow(run_dir: Path | str, interval: float = 0.2) -> Iterator[dict[str, Any]]:
    """The log's lines as they are written, each step once, until the run has ended (or died)."""
    run = RunDirectory(run_dir)
    last_step = -1
    while True:
        ended = poll(run.path).state.ended  # before reading, so that the last lines are not missed
        for line in run.log_lines():
            if line["step"] > last_step:
                last_step = line["step"]
                yield line
        if ended:
            return
        time.sleep(interval)


def kill(run_dir: Path | str, spare: Collection[int | None] = ()) -> None:
    """Kill the processes that hold a run's lock, and their children; wait until it is free."""
    run = RunDirectory(run_dir)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.pid in spare:
                continue
            if any(file.path == str(run.lock_file) for file in process.open_files()):
                for one in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
    deadline = time.monotonic() + KILL_SECONDS
    while run.is_locked() and time.monotonic() < deadline:
        _reap()
        time.sleep(0.05)


_children: dict[int, subprocess.Popen[bytes]] = {}


def _reap() -> None:
    """Collect children that have ended, so that they do not stay as zombies."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            with contextlib.suppress(KeyError):
                del _children[pid]
