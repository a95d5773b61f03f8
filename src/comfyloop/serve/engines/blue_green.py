"""An engine whose adapters are given at its start: another set of adapters is another process.

The new process is started beside the old one and warmed up, then new requests go to it, and the old one is
stopped when its last request has ended. Any OpenAI-compatible server that takes adapters on its command line
can be served so.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comfyloop.errors import ComfyLoopError, EngineUnavailable, ModelError
from comfyloop.serve.engines.client import VLLM, Dialect, EngineClient
from comfyloop.serve.engines.process import EngineProcess
from comfyloop.serve.engines.protocol import Check, EngineState, Launch, Progress

log = logging.getLogger(__name__)

DRAIN_SECONDS = 600.0
"""A process that has been replaced is stopped after so long even when a request on it has not ended."""

AdapterCommand = Callable[[Path, Mapping[str, str]], Launch]
"""From the port file and the adapters (name -> directory) to how the engine is started."""


class BlueGreenEngine:
    """An engine of one base model, in a process for each set of adapters.

    Args:
        wanted: The adapters that the first process starts with: those of the live versions.
        dialect, start_seconds, sleep_after: As of `EngineProcess`.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        command: AdapterCommand,
        *,
        wanted: Callable[[], Mapping[str, str]] = dict,
        check: Check = lambda name, path: None,
        dialect: Dialect = VLLM,
        start_seconds: float = 900.0,
        sleep_after: float | None = 0.0,
    ) -> None:
        self.name = name
        self.on_up: Callable[[Any], None] = lambda engine: None
        self.on_down: Callable[[Any], None] = lambda engine: None
        self.on_state: Callable[[Any], None] = lambda engine: None
        self._directory = directory
        self._command = command
        self._wanted = wanted
        self._check = check
        self._dialect = dialect
        self._start_seconds = start_seconds
        self._sleep_after = sleep_after
        self._made = 0
        self._starts = 0
        self._lock = threading.Lock()  # of what follows; held for moments only
        self._swapping = threading.Lock()  # one new process at a time
        self._adapters: dict[str, str] = {}
        self._draining: list[EngineProcess] = []
        self._process = self._make({})

    def _make(self, adapters: dict[str, str]) -> EngineProcess:
        self._made += 1

        def command(port_file: Path) -> Launch:
            return self._command(port_file, adapters)

        return EngineProcess(
            f"{self.name}-{self._made}",
            self._directory,
            command,
            start_seconds=self._start_seconds,
            sleep_after=self._sleep_after,
            dialect=self._dialect,
        )

    def _follow(self, process: EngineProcess) -> None:
        """Its comings and goings are the engine's own from now on."""
        process.on_up = lambda _: self.on_up(self)
        process.on_down = lambda _: self.on_down(self)
        process.on_state = lambda _: self.on_state(self)

    # --- as of any engine, for the process that answers now

    @property
    def state(self) -> EngineState:
        return self._process.state

    @property
    def error(self) -> str:
        return self._process.error

    @property
    def starts(self) -> int:
        return self._starts + self._process.starts

    @property
    def client(self) -> EngineClient:
        return self._process.client

    @property
    def base_name(self) -> str:
        return self._process.base_name

    @property
    def log_file(self) -> Path:
        return self._process.log_file

    def unavailable(self) -> EngineUnavailable:
        return self._process.unavailable()

    def answers(self) -> bool:
        return self._process.answers()

    def start(self) -> None:
        with self._swapping:
            self._adapters = dict(self._wanted())
            self._process = self._make(self._adapters)
            self._follow(self._process)
            self._process.start()

    def wait_ready(self, seconds: float = 900.0, progress: Progress = lambda line: None) -> None:
        self._process.wait_ready(seconds, progress)

    def stop(self) -> None:
        with self._lock:
            every = [self._process, *self._draining]
        for process in every:
            process.stop()

    def enter(self) -> EngineProcess:
        with self._lock:
            return self._process.enter()

    # --- another set of adapters

    def load(self, name: str, path: str) -> None:
        """Have a process with this adapter beside the present ones take over.

        Raises:
            InvalidInput, NotFound: The engine cannot take this adapter.
            EngineUnavailable, ModelError: The new process does not start; the old one goes on.
        """
        with self._swapping:
            there = self.client.models()  # an engine that is down is waited for, not replaced
            if name in self._adapters and name in there:
                return
            self._check(name, path)
            adapters = {**self._adapters, name: path}
            fresh = self._make(adapters)
            fresh.start()
            try:
                fresh.wait_ready(self._start_seconds, patient=False)
                self._warm(fresh.client, [fresh.base_name, *adapters])
            except ComfyLoopError:
                fresh.stop()
                raise
            self._move_to(fresh, adapters)

    def _warm(self, client: EngineClient, names: list[str]) -> None:
        there = client.models()
        for name in names:
            if name not in there:
                raise ModelError(f"The engine was started with {name} but does not list it.")
            client.answer(name, [{"role": "user", "content": "Hello!"}], 1)

    def _move_to(self, fresh: EngineProcess, adapters: dict[str, str]) -> None:
        with self._lock:
            old, self._process = self._process, fresh
            self._adapters = adapters
            self._starts += old.starts
            self._draining.append(old)
        old.on_up = old.on_down = old.on_state = lambda _: None
        self._follow(fresh)
        threading.Thread(target=self._drain, args=(old,), name=f"drain-{old.name}", daemon=True).start()

    def _drain(self, old: EngineProcess) -> None:
        if not old.wait_idle(DRAIN_SECONDS):
            log.warning("Requests on %s had not ended after %.0f seconds.", old.name, DRAIN_SECONDS)
        old.stop()
        with self._lock, contextlib.suppress(ValueError):
            self._draining.remove(old)

    def unload(self, name: str) -> None:
        """The next process is started without it; the present one keeps it."""
        with self._swapping:
            self._adapters.pop(name, None)
