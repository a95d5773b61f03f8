"""The demo's service, a client that never stops asking, and the memory that all of it takes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from comfyloop.client.client import Client
from comfyloop.errors import ComfyLoopError, EngineUnavailable
from comfyloop.settings import Settings

START_SECONDS = 900.0


class ServiceProcess:
    """`comfyloop up` as a process of its own, with the demo's settings."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log


@contextlib.contextmanager
def service(
    settings: Settings, home: Path, trigger: int, project: str, **more: object
) -> Iterator[ServiceProcess]:
    """A service on a free port; its loop starts by itself after `trigger` pieces of feedback.

    Args:
        more: Further settings of the service, by their names.

    Raises:
        EngineUnavailable: It ended or opened no port; its own last line is the reason.
    """
    home.mkdir(parents=True, exist_ok=True)
    port_file, log = home / "port", home / "service.log"
    port_file.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "COMFYLOOP_HOME": str(home),
        "COMFYLOOP_CACHE_DIR": str(settings.cache_dir),
        "COMFYLOOP_MODEL": settings.model,
        "COMFYLOOP_PROJECT": project,
        "COMFYLOOP_TRIGGER_SAMPLES": str(trigger),
        "COMFYLOOP_QUIET_SECONDS": "0",  # the demo itself asks all the time; training is not to wait for that
    }
    environment |= {f"COMFYLOOP_{name.upper()}": str(value) for name, value in more.items()}
    command = [sys.executable, "-m", "comfyloop", "up", "--port", "0", "--port-file", str(port_file)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists() or not port_file.read_text("utf-8").endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                last = (log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
                raise EngineUnavailable(f"The demo's service did not start: {last}", f"Its log is {log}.")
            time.sleep(0.05)
        yield ServiceProcess(process, f"http://127.0.0.1:{port_file.read_text('utf-8').strip()}", log)
    finally:
        for run in (home / "runs").glob("*"):  # a trainer outlives its service on purpose; here it shall not
            (run / "cancel").touch()
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(client: Client, tell: Callable[[str], None]) -> None:
    """Until the engine answers; the reason is told as it changes.

    Raises:
        EngineUnavailable: It did not within a quarter of an hour, or cannot be started.
    """
    deadline = time.monotonic() + START_SECONDS
    said = ""
    while True:
        try:
            client.call("GET", "/readyz")
            return
        except ComfyLoopError as error:
            if "cannot be started" in str(error) or time.monotonic() > deadline:
                raise
            if str(error) != said:
                said = str(error)
                tell(said)
        time.sleep(0.2)


class Background(threading.Thread):
    """Somebody else who goes on asking while everything happens."""

    def __init__(self, url: str, token: str, pause: float = 1.0) -> None:
        super().__init__(name="background-client", daemon=True)
        self._client = Client(url, token)
        self._pause = pause
        self._stopped = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self.versions: dict[str, int] = {}

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                answer = self._client.ask("What is the capital of Italy?", max_tokens=12)
                self.answered += 1
                self.versions[answer.version] = self.versions.get(answer.version, 0) + 1
            except ComfyLoopError as error:
                self.failures.append(str(error))
            self._stopped.wait(self._pause)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._client.close()

    def report(self) -> dict[str, Any]:
        return {
            "asked": self.answered + len(self.failures),
            "failed": len(self.failures),
            "failures": self.failures[:5],
            "versions": self.versions,
        }


class MemoryPeak(threading.Thread):
    """Peak resident memory, in bytes, of a process and all its descendants together."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="memory", daemon=True)
        self._root = psutil.Process(pid)
        self._stopped = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            total = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [self._root, *self._root.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += _own_bytes(process)
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _own_bytes(process: psutil.Process) -> int:
    """Proportional set size where the system tells it: shared pages are not counted twice."""
    info = process.memory_full_info()
    return int(getattr(info, "pss", info.rss))


@contextlib.contextmanager
def directory(home: Path | None) -> Iterator[Path]:
    if home is not None:
        yield home.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="comfyloop-demo-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
