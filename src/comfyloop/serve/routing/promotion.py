"""Changing the version that "acme" means, without a pause for its clients.

Promote and roll back are the same act, in different directions::

    load -> verify -> warm up with a real prompt -> flip the alias -> drain -> unload

The alias is flipped by one database transaction; only then do new requests start on the new version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

from sqlalchemy import Connection

from comfyloop.errors import Conflict
from comfyloop.records import Project
from comfyloop.serve.engines.protocol import Progress
from comfyloop.serve.events import Events
from comfyloop.serve.routing.aliases import Aliases
from comfyloop.serve.routing.loaded_versions import LoadedVersions
from comfyloop.store import Store, projects, versions

Also = Callable[[Connection], None]


@dataclass(frozen=True)
class Promotion:
    """What a promote or a roll back did, and the seconds that each step took."""

    project: str
    number: int
    previous: int
    seconds: Mapping[str, float]


class MoveOptions(TypedDict, total=False):
    """What `promote` and `rollback` may be told besides."""

    also: Also
    progress: Progress
    drain_seconds: float


class PromotionOptions(MoveOptions, total=False):
    force: bool


class Promoter:
    """Moves the aliases of all projects, one move of a project at a time. Thread-safe."""

    def __init__(self, store: Store, loaded: LoadedVersions, aliases: Aliases, events: Events) -> None:
        self.swaps = 0
        self._store = store
        self._loaded = loaded
        self._aliases = aliases
        self._events = events
        self._moving: dict[str, threading.Lock] = {}

    def promote(
        self,
        project: str,
        number: int,
        *,
        force: bool = False,
        also: Also = lambda conn: None,
        progress: Progress = lambda step: None,
        drain_seconds: float = 0.0,
    ) -> Promotion:
        """Make version `number` (0: the base) the live one of `project`.

        Args:
            force: Promote also what the gate rejected.
            also: Done in the same transaction as the flip, e.g. the loop's own change of state.
            progress: Told "load", "warm", "flip", "drain" as each begins.
            drain_seconds: Wait so long for requests on the old version; it is unloaded after them anyway.

        Raises:
            NotFound: No such project or version.
            Conflict: It was rejected, or another promotion of this project is under way.
            ComfyLoopError: The version does not load or does not answer; the old one stays live.
        """

        def flip(conn: Connection) -> Project:
            return versions.promote(conn, project, number, force=force)

        with self._alone(project):
            return self._move(project, number, flip, also, progress, drain_seconds)

    def rollback(
        self,
        project: str,
        number: int | None = None,
        *,
        also: Also = lambda conn: None,
        progress: Progress = lambda step: None,
        drain_seconds: float = 0.0,
    ) -> Promotion:
        """Go back to version `number`, or to the one that was live before. The rest is as of `promote`."""

        def flip(conn: Connection) -> Project:
            return versions.rollback(conn, project, to=target)

        with self._alone(project):
            if number is None:
                with self._store.read() as conn:
                    target = versions.rollback_target(conn, project)
            else:
                target = number
            return self._move(project, target, flip, also, progress, drain_seconds)

    def canary(self, project: str, number: int, share: float, *, also: Also = lambda conn: None) -> Promotion:
        """Have version `number` answer `share` (0 to 1) of the conversations beside the live one; 0 ends that.

        Raises:
            NotFound: No such project or version.
            Conflict: It is live or was rejected, or a promotion of this project is under way.
            ComfyLoopError: The version does not load or does not answer.
        """
        clock = _Laps()
        with self._alone(project):
            before = self._aliases.get(project)
            if share:
                with self._loaded.load(before, number) as handle:
                    clock.lap("load")
                    self._loaded.warm_up(handle.entry)
                    clock.lap("warm")
                    self._set_canary(project, number, share, also)
                    self._loaded.keep(handle.entry)
            else:
                self._set_canary(project, number, 0.0, also)
            if before.canary_share and (before.canary != number or not share):
                self._loaded.retire(project, before.canary)
        self._events.publish(
            {"type": "version.canary", "project": project, "version": number, "share": share}
        )
        return Promotion(project, before.live, before.live, clock.seconds)

    def _set_canary(self, project: str, number: int, share: float, also: Also) -> None:
        with self._store.begin() as conn:
            changed = versions.set_canary(conn, project, number, share)
            also(conn)
        self._aliases.put(changed)

    @contextmanager
    def _alone(self, project: str) -> Iterator[None]:
        lock = self._moving.setdefault(project, threading.Lock())
        if not lock.acquire(timeout=0.1):
            raise Conflict(
                f"Another promotion of {project!r} is under way.", "Wait until it is done.", retry_after=2
            )
        try:
            yield
        finally:
            lock.release()

    def _move(
        self,
        name: str,
        number: int,
        flip: Callable[[Connection], Project],
        also: Also,
        progress: Progress,
        drain_seconds: float,
    ) -> Promotion:
        clock = _Laps()
        progress("load")
        with self._loaded.load(self._aliases.get(name), number) as handle:
            clock.lap("load")
            progress("warm")
            self._loaded.warm_up(handle.entry)
            clock.lap("warm")
            progress("flip")
            with self._store.begin() as conn:
                before = projects.get(conn, name)
                previous = before.live
                flipped = flip(conn)
                also(conn)
            self._loaded.keep(handle.entry)
            self._aliases.put(flipped)
            self.swaps += previous != number
            clock.lap("flip")
        self._events.publish(
            {"type": "version.promoted", "project": name, "version": number, "previous": previous}
        )
        if before.canary_share and before.canary != number:
            self._loaded.retire(name, before.canary)
        if previous != number and (old := self._loaded.retire(name, previous)) is not None:
            progress("drain")
            if drain_seconds:
                self._loaded.wait_gone(old, drain_seconds)
                clock.lap("drain")
        return Promotion(name, number, previous, clock.seconds)


class _Laps:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 4), now
