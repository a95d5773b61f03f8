"""The output of a run: status.json, log.jsonl, TensorBoard files, a progress bar, plain lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from comfyloop.formats import BadRow
from comfyloop.models.memory import MIB
from comfyloop.train.run.directory import (
    MOST_LEFT_OUT,
    LeftOut,
    RunDirectory,
    Status,
    TrainState,
    disk_error,
    write_atomically,
)

NAMES = (
    "step", "epoch", "loss", "answer_token_accuracy", "grad_norm", "learning_rate", "samples_per_s",
    "answer_tokens_per_s", "padded_share", "rss_mb", "holdout_loss", "eta_seconds",
)  # fmt: skip
"""The names in every line of log.jsonl; what was not measured at a step is null."""


class RunLog:
    """The only writer of a run's status and log.

    Args:
        silent: Write files only, and no TensorBoard ones: a rank that another one speaks for.
    """

    def __init__(self, run: RunDirectory, *, silent: bool = False) -> None:
        self._run = run
        self._silent = silent
        self._process = psutil.Process()
        self._status = Status(
            state=TrainState.STARTING, pid=os.getpid(), pid_start_time=self._process.create_time()
        )
        self._before_hold = TrainState.STARTING
        self._held_at = 0.0
        self._began = time.monotonic()
        self._events: _Events | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._console = Console()
        self._side = ""
        run.write_status(self._status)

    @property
    def status(self) -> Status:
        return self._status

    @contextmanager
    def side(self, name: str) -> Iterator[None]:
        """Select the side of a joint run: its lines carry its name, and its steps are counted separately."""
        self._side = name
        try:
            yield
        finally:
            self._close()
            self._side = ""

    def _set(self, **changes: Any) -> None:
        self._status = self._status.model_copy(update=changes)
        self._run.write_status(self._status)

    def phase(self, what: str) -> None:
        """Report what is done before the first step."""
        self._set(phase=what)
        self.say(f"[{time.monotonic() - self._began:6.1f} s] {what}")

    def say(self, line: str) -> None:
        if self._silent:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def left_out(self, path: Path, bad: Sequence[BadRow]) -> None:
        """Log rows that are not trained on, with the reason, and record them in the status."""
        entries = tuple(
            LeftOut(file=path.name, line=row.line, sample=row.id, reason=row.reason) for row in bad
        )
        for row, entry in zip(bad, entries, strict=True):
            self.say(f"left out {path.name}:{row.where} (sample {row.id}): {entry.reason}")
        new = [entry for entry in entries if entry not in self._status.left_out]
        if new:
            self._set(
                left_out=(*self._status.left_out, *new)[:MOST_LEFT_OUT],
                left_out_count=self._status.left_out_count + len(new),
            )

    def warn(self, sentence: str) -> None:
        """Log a warning, and record it in the status."""
        self.say(f"warning: {sentence}")
        if sentence not in self._status.warnings:
            self._set(warnings=(*self._status.warnings, sentence))

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of this run so far; in a joint run those of the current side."""
        return (line for line in self._run.log_lines() if line.get("side", "") == self._side)

    def begin(self, step: int, total_steps: int, trainable: int, total: int) -> None:
        """Prepare for steps from `step` on; lines that a killed process wrote after it are dropped."""
        share = trainable / total
        self.say(
            f"training {trainable:,} of {total:,} parameters ({share:.2%}), steps {step} to {total_steps}"
        )
        lines = [
            line
            for line in self._run.log_lines()
            if line.get("side", "") != self._side or (step and line["step"] <= step)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self._run.log_file, text.encode())
        self._close()  # of a try that memory did not suffice for
        self._events = None if self._silent else _Events(self._run.tensorboard / self._side, step)
        if sys.stdout.isatty() and not self._silent:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=step, loss="-")
            self._bar.start()
        self._set(
            state=TrainState.RUNNING,
            phase="training",
            step=step,
            total_steps=total_steps,
            trainable_parameters=trainable,
            total_parameters=total,
        )

    def progress(self, done: int, total: int) -> None:
        """Report the progress of a run that takes no steps."""
        self._set(state=TrainState.RUNNING, step=done, total_steps=total)

    def step(self, **values: Any) -> None:
        """One line of the log; names are those of NAMES, and a recipe may add its own."""
        line = {name: None for name in NAMES} | values
        if self._side:
            line["side"] = self._side
        line["rss_mb"] = round(self._process.memory_info().rss / 2**20)
        try:
            with self._run.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise disk_error(self._run.log_file, error) from error
        if self._events is not None:
            self._events.add(line)
        self._set(
            step=line["step"],
            epoch=line["epoch"],
            loss=line["loss"],
            eta_seconds=line["eta_seconds"],
        )
        loss = "-" if line["loss"] is None else f"{line['loss']:.3f}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=line["step"], loss=loss)
        else:
            fields = {k: v for k, v in line.items() if v is not None}
            self.say(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())
            )

    def rows(self, step: int, losses: Mapping[str, float]) -> None:
        """Which samples a step was made of, and how well each was foretold: what stands behind a spike."""
        line = {"step": step, "rows": {id: round(loss, 4) for id, loss in losses.items()}}
        if self._side:
            line["side"] = self._side
        try:
            with self._run.step_rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise disk_error(self._run.step_rows, error) from error

    def held(self, holding: bool) -> None:
        if holding:
            self._held_at = time.monotonic()
            self._before_hold = self._status.state
            self._set(state=TrainState.HOLDING)
            self.say("holding: the file `hold` is there")
        else:
            held = time.monotonic() - self._held_at
            self._set(state=self._before_hold, held_seconds=self._status.held_seconds + held)
            self.say("going on")

    def aside(self, size: int, seconds: float) -> None:
        """A held run has given so many bytes back, or has them again (0)."""
        self._set(freed_bytes=size, aside_seconds=self._status.aside_seconds + seconds)
        done = f"stepped aside: {size / MIB:,.0f} MiB given back" if size else "has its memory again"
        self.say(f"{done}, after {seconds:.1f} s")

    def takes(self, size: int) -> None:
        """So many bytes of the device's memory, at most up to now."""
        if size > self._status.memory_bytes:
            self._set(memory_bytes=size)

    def lost(self, failure: str, sign: str) -> None:
        """Record that another process of the run is gone: `failure` is its error, `sign` how this process
        noticed."""
        if failure:
            self.end(TrainState.FAILED, error=failure, exit_code=1)
            return
        error = (
            f"Another process of the run is gone ({sign}), so it stopped at step {self._status.step} of "
            f"{self._status.total_steps}. Start the run again: it goes on from its last checkpoint."
        )
        self._set(error=error)  # no end of the run: it can go on
        self.say(error)

    def end(self, state: TrainState, *, error: str = "", exit_code: int = 0) -> None:
        self._close()
        self._set(state=state, error=error, exit_code=exit_code, phase="", eta_seconds=None)
        self.say(error or str(state))

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Events:
    """TensorBoard event files with the same names as the log."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("step", "side") and value is not None:
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()
