"""What an engine is to the rest of the service, and how one is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from comfyloop.errors import EngineUnavailable
from comfyloop.serve.engines.client import BASE_NAME, EngineClient
from comfyloop.serve.engines.sleeper import Sleeper

__all__ = [
    "BASE_NAME",
    "SECRET_VARIABLE",
    "Check",
    "Command",
    "Engine",
    "EngineState",
    "Entered",
    "Launch",
    "Progress",
]

SECRET_VARIABLE = "COMFYLOOP_ENGINE_SECRET"
"""In the environment of the embedded engine, where other users do not see it: what its callers must send."""

Progress = Callable[[str], None]


class EngineState(StrEnum):
    STOPPED = "stopped"  # not started, or stopped on purpose
    STARTING = "starting"  # its model is being loaded
    READY = "ready"  # it answers, and what `on_up` wanted is done
    RESTARTING = "restarting"  # it died; it is being started again, after a pause
    FAILED = "failed"  # it cannot be started; `error` says why


@dataclass(frozen=True)
class Launch:
    """How a process is started.

    Attributes:
        port: Where it will listen; 0: it writes the port that it took into the port file.
        environment: All its variables; None: those of this process.
        secret: What callers must send as a bearer token: others of this machine reach its port, too.
    """

    argv: Sequence[str]
    port: int = 0
    environment: Mapping[str, str] | None = None
    secret: str = field(default="", repr=False)


Command = Callable[[Path], Launch]
"""From the port file to how the engine is started; called before every start."""

Check = Callable[[str, str], None]
"""Told an adapter's name and directory before it is loaded; raises what is wrong with it for this engine."""


class Entered(Protocol):
    """A process that is not stopped as long as somebody has entered it."""

    @property
    def client(self) -> EngineClient:
        """Raises EngineUnavailable when it has died."""

    def leave(self) -> None: ...


class Engine(Protocol):
    """What serves one base model: a process, or several in turn (`blue_green.py`)."""

    name: str
    on_up: Callable[[Any], None]
    on_down: Callable[[Any], None]
    on_state: Callable[[Any], None]

    @property
    def state(self) -> EngineState: ...

    @property
    def error(self) -> str: ...

    @property
    def starts(self) -> int: ...

    @property
    def client(self) -> EngineClient:
        """Calls to the process that answers now. Raises EngineUnavailable while there is none."""

    @property
    def base_name(self) -> str:
        """What the base model is called there."""

    @property
    def log_file(self) -> Path: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def wait_ready(self, seconds: float = 900.0, progress: Progress = lambda line: None) -> None: ...

    def unavailable(self) -> EngineUnavailable: ...

    def answers(self) -> bool:
        """Whether it answers at this moment, whatever its state was when it was last looked at. Blocks a little."""

    def enter(self) -> Entered:
        """The process that answers now, which will not be stopped before its `leave` is called."""

    def load(self, name: str, path: str) -> None:
        """Have the adapter in `path` answer under `name`; blocks until it does, or raises why not."""

    def unload(self, name: str) -> None: ...


def sleeper_of(engine: Engine) -> Sleeper | None:
    """Of the process that answers now; None while there is none."""
    try:
        return engine.client.sleeper
    except EngineUnavailable:
        return None
