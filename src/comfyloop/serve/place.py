"""A version in an engine, and a request's hold on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from comfyloop.errors import EngineUnavailable
from comfyloop.serve.engine import Engine
from comfyloop.serve.names import version_name


class PlaceState(StrEnum):
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    LOST = "lost"  # its engine died


@dataclass(eq=False)
class Place:
    """A version in an engine, and how many requests use it. Guarded by the lock of `Places`."""

    engine: Engine
    project: str
    number: int
    model: str  # what the engine calls it
    state: PlaceState = PlaceState.LOADING
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    retiring: bool = False  # unload it when its last request ends
    warm: bool = False


class Lease:
    """One request's hold on a version. `release()` it exactly once, or use it as a context manager."""

    __slots__ = ("_process", "_release", "client", "model", "number", "place", "project")

    def __init__(self, place: Place, release: Callable[[Place], None]) -> None:
        self._release: Callable[[Place], None] | None = release
        self.place = place
        self.project = place.project
        self.number = place.number
        self.model = place.model
        self._process = place.engine.enter()
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
            release(self.place)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
