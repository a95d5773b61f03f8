"""The service on this machine, started and ended from the sidebar.

What is started is the ComfyLoop that `comfyloop comfyui link` recorded beside the pack, and nothing else: no page says
which program, folder or options. It is a process of its own, which outlives ComfyUI; a ComfyUI that is started anew
finds it again by what is remembered of it here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from . import platforms

RECORD = "comfyloop.launch.json"
"""In `custom_nodes`, beside the pack: `python`, `path` (to be put before its own, where it has no ComfyLoop by itself),
`home`."""
TAIL = 12_000
"""Bytes of the log that are shown."""
STOP_SECONDS = 20.0
NOT_FOR_IT = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables of ComfyUI's own Python, and what it sets for its own memory."""


class LaunchError(ValueError):
    """One sentence that says why it cannot be, and the mend."""


class Launcher:
    """
    Args:
        folder: Where its log and what is remembered of it are.
        records: Where the record may be.
    """

    def __init__(self, folder: Path, records: Callable[[], Sequence[Path]]) -> None:
        self._records = records
        self.log_file, self._memory = folder / "service.log", folder / "service.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._mutex = threading.Lock()

    def state(self, url: str) -> dict[str, Any]:
        """Whether it can be started, or why not; whether one that was started here runs, and how one ended."""
        try:
            self._command(url)
            why = ""
        except LaunchError as error:
            why = str(error)
        running = self._running() is not None
        code = self._process.poll() if self._process is not None else None
        return {"why_not": why, "running": running, "ended": code if not running else None}

    def start(self, url: str) -> None:
        """Raises LaunchError or OSError. Twice starts one."""
        with self._mutex:
            if self._running() is not None:
                return
            command, record = self._command(url)
            home = Path(record["home"])
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            if self.log_file.exists():
                platforms.replace(self.log_file, self.log_file.with_suffix(".log.before"))
            environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT}
            # Lines that are read in a panel; the working directory's modules are not ComfyLoop's.
            environment |= {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "500"}
            if record["path"]:
                environment["PYTHONPATH"] = record["path"]
            with self.log_file.open("wb") as log:
                self._process = platforms.start_apart(command, cwd=home, env=environment, log=log)
            told = {"pid": self._process.pid, "command": command}
            new = self._memory.with_suffix(".new")
            new.write_text(json.dumps(told), "utf-8")
            platforms.replace(new, self._memory)

    def stop(self) -> None:
        """End what was started here, as Ctrl-C would: a training run goes on. Blocks until it has ended.

        Raises LaunchError.
        """
        with self._mutex:
            process = self._running()
            if process is None:
                raise LaunchError("What runs was not started here: end it where it was started.")
            try:
                process.terminate()
                if self._process is not None and self._process.pid == process.pid:
                    self._process.wait(STOP_SECONDS)  # ours: nobody else collects it
                    self._process = None
                else:
                    process.wait(STOP_SECONDS)
            except psutil.NoSuchProcess:
                pass
            except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
                raise LaunchError("It was told to end and is not done yet. Look again in a minute.") from None
            except psutil.AccessDenied:
                raise LaunchError("The system does not let ComfyUI end it.") from None
            with contextlib.suppress(OSError):
                platforms.unlink(self._memory)

    def log(self) -> str:
        """The end of what it has said since it was started."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _running(self) -> psutil.Process | None:
        """What was started here, by this ComfyUI or one before it; a number that another program has by now is not."""
        try:
            if self._process is not None:  # ours to ask; one that is about to end has no command line any more
                return psutil.Process(self._process.pid) if self._process.poll() is None else None
            told = json.loads(self._memory.read_bytes())
            process = psutil.Process(int(told["pid"]))
            return process if process.cmdline()[1:] == told["command"][1:] else None
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None

    def _command(self, url: str) -> tuple[list[str], dict[str, str]]:
        """What is started so that it listens where the pack looks for it, and the record. Raises LaunchError."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme != "http" or port is None or parts.path or not is_loopback(host):
            raise LaunchError(f"{url} is not on this machine: start ComfyLoop there.")
        record = self._record()
        command = [record["python"], "-m", "comfyloop", "up", "--host", host, "--port", str(port)]
        return [*command, "--home", record["home"]], record

    def _record(self) -> dict[str, str]:
        file = next((path for path in self._records() if path.is_file()), None)
        again = "Run `comfyloop comfyui link PATH_TO_COMFYUI` once; then it can be started from here."
        if file is None:
            raise LaunchError(f"It is not known where ComfyLoop is installed. {again}")
        try:
            told = json.loads(file.read_text("utf-8"))
            record = {name: str(told[name]) for name in ("python", "path", "home")}
        except (OSError, ValueError, KeyError, TypeError):
            raise LaunchError(f"{file} cannot be read. {again}") from None
        if not Path(record["python"]).is_file():
            raise LaunchError(f"ComfyLoop was installed with {record['python']}, which is gone. {again}")
        return record


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def from_own_page(host: str, headers: Any) -> bool:
    """Whether a request that starts or ends a program comes from ComfyUI's own page, or from no page at all.

    ComfyUI itself lets other sites in where `--enable-cors-header` is set. Browsers say `Sec-Fetch-Site` where they
    trust the connection; elsewhere the page must be the one that was asked, and under a name that no other site can
    have bound to this machine (DNS rebinding).
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    origin = headers.get("Origin")
    return _is_local_name(name) and (origin is None or urlsplit(origin).netloc.lower() == host.lower())


def _is_local_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return "." not in name or name.endswith((".local", ".localhost"))
