"""Starts, monitors, pauses and stops ms-swift's process, and converts its events to lines of our log.

No torch is imported here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from comfyloop import platforms
from comfyloop.environments import clean_environ
from comfyloop.errors import RunFailed
from comfyloop.train.run.control import Cancelled, Control, Terminated
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.swift.checks import SwiftProgress

POLL_SECONDS = 0.1
CANCEL_SECONDS, TERMINATE_SECONDS = 600.0, 60.0
"""How long the step at hand, and a checkpoint after it, may take when a person stops the run, and when the
machine goes down."""


class Tail:
    """The lines of a file as they are written; an incomplete line is left for the next call."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(encoding="utf-8")
        self._part = ""

    def lines(self) -> Iterator[dict[str, Any]]:
        while line := self._file.readline():
            self._part += line
            if self._part.endswith("\n"):
                whole, self._part = self._part, ""
                with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
                    yield json.loads(whole)


def environment(spec: TrainSpec, cache: Path) -> dict[str, str]:
    """Environment variables of ms-swift's process: without our packages, a launcher's ranks, and the home
    directory's caches."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "NNODES", "NODE_RANK")
    inherited = {name: value for name, value in clean_environ().items() if name not in ranks}
    ours = {"MODELSCOPE_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}
    if Path(spec.model).is_dir():
        ours["HF_HUB_OFFLINE"] = "1"
    return {**inherited, **ours, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def see_output(directory: RunDirectory) -> str:
    return f"{directory.output_file} has what it printed."


class SwiftWatch:
    """ms-swift's process while it trains: forwards its events to the log, and requests of the run to it."""

    def __init__(
        self, directory: RunDirectory, spec: TrainSpec, log: RunLog, control: Control, samples: int
    ) -> None:
        self.directory, self.spec, self.log, self.control = directory, spec, log, control
        self.samples = samples
        self.progress = SwiftProgress()
        self.worked: Callable[[], float] | None = None  # since the first step began
        self.began_at = 0
        self.error = ""  # what ms-swift failed with
        self._counts: dict[str, Any] = {}  # of the step that has not been logged yet
        self._last = 0.0

    def run(self, command: list[str], events: Path, afresh: bool) -> None:
        """Run ms-swift until it ends. Raises RunFailed if it fails."""
        if afresh:
            events.unlink(missing_ok=True)
        events.touch()
        tail = Tail(events)
        self._catch_up(list(tail.lines()))
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=environment(self.spec, events.parent / "cache"),
            cwd=events.parent,
            **platforms.apart(),  # so that all of it can be stopped at once
        ) as process:
            try:
                while process.poll() is None:
                    self._look(tail)
                    self._limit(process)
                    self._obey(process)
                    time.sleep(POLL_SECONDS)
                self._look(tail)
            except Cancelled:
                self._let_it_save(process, tail, CANCEL_SECONDS)
                raise
            except Terminated:
                self._let_it_save(process, tail, TERMINATE_SECONDS)
                raise
            finally:
                platforms.kill_group(process.pid)
        self.control.check()  # it may have ended because it was told to
        if process.returncode != 0:
            if "rejected_response: [" in self.error:
                raise RunFailed(
                    "The kto of ms-swift gives each row the answer of another one of its step, and here two had "
                    f"the same answer ({self.error.partition('response: [')[2].partition(']')[0]}).",
                    "Train with train_engine = comfyloop, which takes the answer of another row then.",
                )
            why = f" ({self.error})" if self.error else ""
            raise RunFailed(
                f"ms-swift ended with exit code {process.returncode}{why}.", see_output(self.directory)
            )

    def _obey(self, process: subprocess.Popen[bytes]) -> None:
        if not self.directory.hold_file.exists():
            self.control.check()
            return
        platforms.freeze(process.pid)
        try:
            self.control.check()  # comes back when the hold is over
        finally:
            platforms.thaw(process.pid)

    def _let_it_save(self, process: subprocess.Popen[bytes], tail: Tail, seconds: float) -> None:
        """Wait for a checkpoint after the current step, if training has begun."""
        if self.worked is None:
            return
        (self.directory.path / "swift" / "stop").touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        self._look(tail)

    def _limit(self, process: subprocess.Popen[bytes]) -> None:
        """Check ms-swift's memory: our own watch covers only this process."""
        if self.spec.memory_gb <= 0:
            return
        try:
            used = psutil.Process(process.pid).memory_info().rss / 2**30
        except psutil.NoSuchProcess:
            return
        if used > self.spec.memory_gb:
            raise RunFailed(
                f"ms-swift used {used:.1f} GiB of memory, more than its limit of {self.spec.memory_gb:g} GiB.",
                "Raise memory_gb (train_memory_gb in the settings), lower per_device_train_batch_size or "
                "max_pixels, or set gradient_checkpointing.",
            )

    def _catch_up(self, events: list[dict[str, Any]]) -> None:
        """Read the events of earlier processes, and log those that were not logged before a kill.

        ms-swift may have saved a checkpoint after steps whose events had not been read yet.
        """
        valid: list[dict[str, Any]] = []
        for event in events:
            self.progress.add(event)
            if event["event"] == "begin":
                valid = [earlier for earlier in valid if earlier["step"] <= event["step"]]
            if event["event"] in ("begin", "step", "log"):
                valid.append(event)
        logged = {(line["step"], line["loss"] is None) for line in self.directory.log_lines()}
        for event in valid:
            if event["event"] == "step":
                self._counts = event
            elif event["event"] == "begin" or (event["step"], "eval_loss" in event["values"]) in logged:
                self._last = event["time"]
            else:
                self._log(event)

    def _look(self, tail: Tail) -> None:
        for event in tail.lines():
            self.progress.add(event)
            match event["event"]:
                case "importing":
                    self.log.phase("importing ms-swift")
                case "loading":
                    self.log.phase("ms-swift is loading the model")
                case "begin":
                    self.worked, self._last = self.control.stopwatch(), event["time"]
                    self.began_at = event["step"]
                    self.log.begin(event["step"], event["total_steps"], event["trainable"], event["total"])
                case "step":
                    self._counts = event
                case "saved":
                    self._last = event["time"]  # which is no part of the next step
                case "log":
                    self._log(event)
                case "failed":
                    self.error = event["error"]

    def _log(self, event: dict[str, Any]) -> None:
        """ms-swift's values under our names."""
        values, step = event["values"], event["step"]
        if "eval_loss" in values:
            self.log.step(step=step, epoch=event["epoch"], holdout_loss=values["eval_loss"])
            self._last = event["time"]
        if "loss" not in values:
            return
        now = event["time"]
        seconds, self._last = max(now - self._last, 1e-3), now
        batches = self._counts.get("batches", [])
        tokens, padded = sum(b["tokens"] for b in batches), sum(b["padded"] for b in batches)
        steps_done, total = step - self.began_at, self.progress.total_steps
        self.log.step(
            step=step,
            epoch=event["epoch"],
            loss=values["loss"],
            answer_token_accuracy=values.get("token_acc"),
            grad_norm=values.get("grad_norm"),
            learning_rate=self._counts.get("learning_rate"),
            samples_per_s=sum(len(b["rows"]) for b in batches) / seconds,
            answer_tokens_per_s=sum(b["answer_tokens"] for b in batches) / seconds,
            padded_share=padded / max(1, padded + tokens),
            eta_seconds=self.worked() / max(1, steps_done) * (total - step) if self.worked else None,
            **{k: v for k, v in values.items() if k.startswith(("rewards/", "logps/"))},
        )
