"""A version in an engine, and a request's hold on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from comfyloop.errors import EngineUnavailable
from comfyloop.serve.engines.protocol import Engine
from comfyloop.serve.routing.names import version_name


class LoadedState(StrEnum):
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    LOST = "lost"  # its engine died


@dataclass(eq=False)
class LoadedVersion:
    """A version in an engine, and how many requests use it. Guarded by the lock of `LoadedVersions`."""

    engine: Engine
    project: str
    number: int
    model: str  # what the engine calls it
    state: LoadedState = LoadedState.LOADING
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    retiring: bool = False  # unload it when its last request ends
    warm: bool = False


class VersionHandle:
    """One request's hold on a version. `release()` it exactly once, or use it as a context manager."""

    __slots__ = ("_process", "_release", "client", "entry", "model", "number", "project")

    def __init__(self, entry: LoadedVersion, release: Callable[[LoadedVersion], None]) -> None:
        self._release: Callable[[LoadedVersion], None] | None = release
        self.entry = entry
        self.project = entry.project
        self.number = entry.number
        self.model = entry.model
        self._process = entry.engine.enter()
        try:
            self.client = self._process.client
        except EngineUnavailable:
            self._process.leave()
            raise

    @property
    def name(self) -> str:
        """ "acme@17": what the answer says of itself."""
        return version_name(self.project, self.number)

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            self._process.leave()
            release(self.entry)

    def __enter__(self) -> VersionHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
