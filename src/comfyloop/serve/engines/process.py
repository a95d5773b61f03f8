"""One engine process: started, waited for, watched, restarted.

An engine is an HTTP server that speaks the protocol of `client.py`: a child process, whose port we choose or
find in a file that it writes, or one that runs already, given by its URL. A thread watches it: when it dies
or stops answering it is started again, each time after a longer pause. Before it counts as ready, `on_up` is
called: the live versions are loaded there.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from comfyloop import platforms
from comfyloop.errors import (
    ComfyLoopError,
    Conflict,
    EngineUnavailable,
    InvalidInput,
    ModelError,
    NotFound,
    StarterError,
    UnusableEnvironment,
)
from comfyloop.serve.engines.client import VLLM, Dialect, EngineClient
from comfyloop.serve.engines.protocol import BASE_NAME, Check, Command, EngineState, Progress

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
WATCH_SECONDS = 0.5
SILENT_SECONDS = 60.0
"""An engine that is alive but has not answered /health for so long is killed and started again."""
HEALTH_SECONDS = 2.0
STOP_SECONDS = 5.0
LOG_BYTES = 10 * 2**20
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
SLEEP_AFTER = 600.0
"""Seconds without a question after which an engine sleeps that says that it computes on an accelerator."""
FIRST_STARTS = 6
"""A process of ours that has ended so many times before it answered once is not started again."""
HOPELESS = (InvalidInput, ModelError, StarterError, UnusableEnvironment)
HOPELESS_EXITS = {kind.exit_code for kind in HOPELESS}
"""A first start that fails with one of these fails the same way every time."""


class EngineProcess:
    """An engine of one base model.

    Args:
        name: What it is called in files and sentences, e.g. "starter".
        directory: Where its log and port file go (`home/engines`).
        command: Called in the watching thread, so it may first put the model together. None for an engine
            that runs already.
        url: Where a running engine listens; empty: start `command`.
        check: What an adapter must pass before it is loaded.
        dialect: How it is told of adapters.
        start_seconds: Time from the start to the first answer after which the start has failed.
        sleep_after: Seconds without a question after which it sleeps; 0: never; None: `SLEEP_AFTER` on an
            accelerator, else never.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        command: Command | None = None,
        *,
        url: str = "",
        check: Check = lambda name, path: None,
        dialect: Dialect = VLLM,
        start_seconds: float = 900.0,
        sleep_after: float | None = 0.0,
    ) -> None:
        if (command is None) == (not url):
            raise ValueError("give either a command or a url")
        self.name = name
        self.directory = directory
        self.on_up: Callable[[EngineProcess], None] = lambda engine: None
        self.on_down: Callable[[EngineProcess], None] = lambda engine: None
        self.on_state: Callable[[EngineProcess], None] = lambda engine: None
        self.state = EngineState.STOPPED
        self.error = ""
        self.starts = 0
        self.pid: int | None = None
        self.base_name = BASE_NAME
        self._command = command
        self._check = check
        self._dialect = dialect
        self._users = 0
        self._given_url = url.rstrip("/")
        self._start_seconds = start_seconds
        self._sleep_after = sleep_after
        self._client: EngineClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._was_ready = False

    @property
    def client(self) -> EngineClient:
        """Calls to the present incarnation. Raises EngineUnavailable while there is none."""
        client = self._client
        if client is None:
            raise self.unavailable()
        return client

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def log_file(self) -> Path:
        return self.directory / f"{self.name}.log"

    def enter(self) -> EngineProcess:
        with self._changed:
            self._users += 1
        return self

    def leave(self) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until everyone who entered has left; false when `seconds` were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._users == 0, seconds)

    def load(self, name: str, path: str) -> None:
        """Load an adapter while requests run.

        Raises:
            InvalidInput, NotFound: The engine cannot take this adapter, or refuses it.
            Conflict: The name means another adapter there.
        """
        self._check(name, path)
        there = self.client.models()
        if name not in there:
            try:
                self.client.load(name, path)
            except NotFound as error:
                if not self._given_url:
                    raise
                raise InvalidInput(
                    f"The engine at {self._given_url} did not load {name} from {path}: {error.message}",
                    "It must see the same files and take adapters while it runs (vLLM: --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), or have this one by that name from its start.",
                ) from error
        elif there[name] not in ("", path):
            raise Conflict(
                f"The engine has another adapter by the name {name}, from {there[name]}.",
                "Unload it there, or restart the engine.",
            )

    def unload(self, name: str) -> None:
        self.client.unload(name)

    def unavailable(self) -> EngineUnavailable:
        """Why it does not answer now, as an error that says when to try again."""
        match self.state:
            case EngineState.STARTING:
                return EngineUnavailable(
                    "The engine is loading its model.", "Try again in a moment.", retry_after=2
                )
            case EngineState.RESTARTING:
                return EngineUnavailable(
                    f"The engine stopped and is being restarted ({self.error}).",
                    "Try again in a moment.",
                    retry_after=5,
                )
            case EngineState.FAILED:
                return EngineUnavailable(f"The engine cannot be started: {self.error}", retry_after=60)
            case _:
                return EngineUnavailable(
                    "The engine is not running.", "Start the service again.", retry_after=30
                )

    def answers(self) -> bool:
        process, client = self._process, self._client
        if client is None or (process is not None and process.poll() is not None):
            return False
        return client.healthy(seconds=HEALTH_SECONDS)

    def start(self) -> None:
        """Start it and return at once; `wait_ready` waits."""
        if self._thread is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._stop.clear()
        self._set(EngineState.STARTING)
        self._thread = threading.Thread(target=self._supervise, name=f"engine-{self.name}", daemon=True)
        self._thread.start()

    def wait_ready(
        self, seconds: float = 900.0, progress: Progress = lambda line: None, *, patient: bool = True
    ) -> None:
        """Wait until it answers. `progress` is told the last line of its log about once a second; unless it is
        `patient`, the first start that fails is the last.

        Raises:
            EngineUnavailable: It failed to start, or `seconds` have passed.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self._changed:
                if self.state is not EngineState.READY:
                    self._changed.wait(timeout=1.0)
                state = self.state
            if state is EngineState.READY:
                return
            if state in (EngineState.FAILED, EngineState.STOPPED):
                raise self.unavailable()
            if state is EngineState.RESTARTING and not patient:
                raise ModelError(f"The engine cannot be started: {self.error}")
            if time.monotonic() > deadline:
                raise EngineUnavailable(
                    f"The engine was not ready after {seconds:.0f} seconds.", f"See its log: {self.log_file}."
                )
            again = f"start {self.starts + 1}, the last one failed: {self.error}" if self.error else ""
            progress(again or self._last_log_line() or state.value)

    def stop(self) -> None:
        """Stop it and wait until it is gone. An engine given by URL goes on running."""
        self._stop.set()
        self._terminate()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * STOP_SECONDS)
            self._thread = None
        self._forget_client()
        self._set(EngineState.STOPPED)

    # --- the watching thread

    def _set(self, state: EngineState, error: str = "") -> None:
        with self._changed:
            self.state, self.error = state, error
            self._changed.notify_all()
        self.on_state(self)

    def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            started = time.monotonic()
            reason, hopeless = "", False
            self._process = None
            try:
                self._bring_up()
                self._was_ready = True
                self._set(EngineState.READY)
                reason = self._watch()
            except ComfyLoopError as error:
                reason, hopeless = str(error), isinstance(error, HOPELESS)
            except Exception as error:
                log.exception("The engine %s cannot be started", self.name)
                reason, hopeless = f"It cannot be started: {error}", not isinstance(error, OSError)
            code = self._exit_code()
            self._terminate()
            self._forget_client()
            self.on_down(self)
            if self._stop.is_set():
                return
            if not self._was_ready and (hopeless or code in HOPELESS_EXITS):
                self._set(EngineState.FAILED, reason)
                return
            if not self._was_ready and code is not None and self.starts >= FIRST_STARTS:
                self._set(EngineState.FAILED, f"It ended {self.starts} times before it answered. {reason}")
                return
            log.warning("The engine %s is started again: %s", self.name, reason)
            if time.monotonic() - started > 60:
                pause = FIRST_PAUSE
            self._set(EngineState.RESTARTING, reason)
            self._stop.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _bring_up(self) -> None:
        deadline = time.monotonic() + self._start_seconds
        self.starts += 1
        url, secret = (self._given_url, "") if self._given_url else self._launch()
        client = EngineClient(url, secret, self._dialect)
        while not client.healthy():
            try:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise EngineUnavailable(f"It did not answer within {self._start_seconds:.0f} seconds.")
            except EngineUnavailable:
                client.close()
                raise
            self._stop.wait(POLL_SECONDS)
        if self._given_url:
            self.base_name = client.base_name = _base_of(client)
        client.look_asleep()
        client.sleeper.after = self.sleep_after(client.device)
        client.sleeper.on_change = lambda: self.on_state(self)
        self._client = client
        self.on_up(self)

    def _launch(self) -> tuple[str, str]:
        """Start the process; where it listens, and what its callers must send."""
        assert self._command is not None
        port_file = self.directory / f"{self.name}.{os.getpid()}.port"
        port_file.unlink(missing_ok=True)
        launch = self._command(port_file)
        deadline = time.monotonic() + self._start_seconds
        with self._open_log() as log:
            # A session of its own: Ctrl-C reaches the service alone, which drains before it stops the engine.
            self._process = subprocess.Popen(
                list(launch.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if launch.environment is None else dict(launch.environment),
                **platforms.apart(),
            )
        self.pid = self._process.pid
        while not launch.port:
            text = port_file.read_text("utf-8").strip() if port_file.exists() else ""
            if text.isdigit():
                port_file.unlink(missing_ok=True)
                return f"http://127.0.0.1:{text}", launch.secret
            self._check_alive()
            if time.monotonic() > deadline:
                raise EngineUnavailable(f"It did not open a port within {self._start_seconds:.0f} seconds.")
            self._stop.wait(POLL_SECONDS)
        return f"http://127.0.0.1:{launch.port}", launch.secret

    def _check_alive(self) -> None:
        if self._stop.is_set():
            raise EngineUnavailable("It was stopped.")
        if self._process is not None and (code := self._process.poll()) is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise EngineUnavailable(f"{self._last_log_line() or 'It exited.'} ({how}; log: {self.log_file})")

    def _watch(self) -> str:
        """Return, with the reason, when it no longer serves."""
        answered = time.monotonic()
        while not self._stop.wait(WATCH_SECONDS):
            try:
                self._check_alive()
            except EngineUnavailable as error:
                return str(error)
            if self.client.healthy(seconds=5.0):
                answered = time.monotonic()
            elif time.monotonic() - answered > (SILENT_SECONDS if self._process is not None else 5.0):
                return f"It has not answered for {time.monotonic() - answered:.0f} seconds."
            self._let_sleep(self.client)
        return ""

    def sleep_after(self, device: str) -> float:
        """Seconds without a question after which it sleeps on `device` (empty: it does not say); 0: never."""
        if self._sleep_after is not None:
            return self._sleep_after
        return SLEEP_AFTER if device not in ("", "cpu") else 0.0

    def _let_sleep(self, client: EngineClient) -> None:
        try:
            if self._given_url and client.sleeper.can_sleep:
                client.look_asleep()  # others may put it to sleep
            client.sleeper.sleep_when_quiet()
        except ComfyLoopError as error:
            log.warning("The engine %s was to sleep, and does not: %s", self.name, error)

    def _exit_code(self) -> int | None:
        """Of the process, None while it runs or when there is none."""
        return self._process.poll() if self._process is not None else None

    def _terminate(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _forget_client(self) -> None:
        # Not closed here: another thread may be in the middle of a call, which then fails in its own words.
        self._client, self.pid = None, None

    def _open_log(self) -> IO[bytes]:
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES:
            platforms.replace(self.log_file, self.log_file.with_suffix(".log.1"))
        return self.log_file.open("ab")

    def _last_log_line(self) -> str:
        if self._command is None or not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - 4096))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def _base_of(client: EngineClient) -> str:
    """What an engine that we did not start calls its base model: the first that it lists."""
    names = list(client.models())
    if not names:
        raise EngineUnavailable(f"The engine at {client.url} lists no model.")
    return BASE_NAME if BASE_NAME in names else names[0]
