"""A whole service as a process of its own, started, killed and started again by the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from comfyloop.client.client import Client
from comfyloop.errors import ComfyLoopError
from comfyloop.train.run.directory import RunDirectory

Settings = dict[str, object]


class RunningService:
    """`comfyloop up` on a free port over one home directory."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.log = home.parent / f"{home.name}.log"
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client("http://127.0.0.1:1")

    def start(self, **changed: object) -> None:
        self._settings |= changed
        port_file = self.home.parent / f"{self.home.name}.port"
        port_file.unlink(missing_ok=True)
        environment = os.environ | {"COMFYLOOP_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        environment |= {f"COMFYLOOP_{name.upper()}": str(value) for name, value in self._settings.items()}
        command = [sys.executable, "-m", "comfyloop", "up", "--port", "0", "--port-file", str(port_file)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        wait_for(lambda: port_file.exists() and port_file.read_text().endswith("\n"), 60, self.what_happened)
        self.client.close()
        self.client = Client(
            f"http://127.0.0.1:{port_file.read_text().strip()}",
            str(self._settings.get("token", "")),
            str(self._settings["project"]),
        )

    def wait_ready(self, seconds: float = 180) -> None:
        wait_for(self.client.ready, seconds, self.what_happened)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def children(self, module: str) -> list[psutil.Process]:
        """Live processes below the service that run `module`, trainers in sessions of their own too."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if module in command and any(str(self.home) in part for part in command):
                found.append(process)
        return found

    def trainers(self) -> list[psutil.Process]:
        """Live processes of runs, whether started cold or forked from the warm trainer."""
        found = []
        for run in (self.home / "runs").glob("*"):
            directory = RunDirectory(run)
            if directory.is_locked() and (pid := directory.read_status().pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
        return found

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for process in self.trainers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.client.close()

    def what_happened(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "no log"


def wait_for(condition: Callable[[], object], seconds: float, why: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s\n{why()}")
        time.sleep(0.05)


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    made: list[RunningService] = []

    def make(**settings: object) -> RunningService:
        service = RunningService(tmp_path / f"home{len(made)}", **settings)
        made.append(service)
        return service

    yield make
    for service in made:
        with contextlib.suppress(ComfyLoopError, psutil.Error):
            service.stop()
