"""Which engine and which adapter answer for "acme"; changing that while requests run.

Every request holds a `Lease` on the version on which it started, so that a version is unloaded only when
nobody uses it. Promote and roll back are the same act::

    load -> verify -> warm up with a real prompt -> flip the alias -> drain -> unload

The alias is flipped by one database transaction; only then do new requests start on the new version.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from comfyloop.errors import Busy, ComfyLoopError, Conflict, EngineUnavailable, ModelError, NotFound
from comfyloop.records import BASE, Message, Project, VersionState
from comfyloop.serve.client import data_url, wire_message
from comfyloop.serve.engines import BASE_NAME, EngineProcess, EngineState, Progress
from comfyloop.serve.events import Events
from comfyloop.serve.names import ModelName, version_name
from comfyloop.settings import Settings
from comfyloop.store import Store, generations, projects, versions

log = logging.getLogger(__name__)

ROOM_SECONDS = 30.0
"""How long a request waits for a place among the loaded adapters."""
WARM_TOKENS = 2
Also = Callable[[Connection], None]
WARM_QUESTION = "Hello! Who are you?"


class PlaceState(StrEnum):
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    LOST = "lost"  # its engine died


@dataclass(eq=False)
class Place:
    """A version in an engine, and how many requests use it. Guarded by the router's lock."""

    engine: EngineProcess
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

    __slots__ = ("_router", "model", "number", "place", "project", "url")

    def __init__(self, router: Router, place: Place) -> None:
        self._router: Router | None = router
        self.place = place
        self.project = place.project
        self.number = place.number
        self.model = place.model
        self.url = place.engine.url

    @property
    def name(self) -> str:
        """ "acme@17": what the answer says of itself."""
        return version_name(self.project, self.number)

    def release(self) -> None:
        router, self._router = self._router, None
        if router is not None:
            router._release(self.place)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


@dataclass(frozen=True)
class Promotion:
    """What a promote or a roll back did, and the seconds that each step took."""

    project: str
    number: int
    previous: int
    seconds: Mapping[str, float]


class Router:
    """The versions of all projects and where they are loaded. Thread-safe.

    Args:
        engines: One engine for each base model that projects use, keyed by `Project.base_model`. The router
            starts watching them; starting and stopping them is the caller's.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        engines: Mapping[str, EngineProcess],
        events: Events | None = None,
    ) -> None:
        self.engines = dict(engines)
        self.swaps = 0
        self._settings = settings
        self._store = store
        self._events = events or Events()
        self._changed = threading.Condition()
        self._places: dict[tuple[str, int], Place] = {}
        self._projects: dict[str, Project] = {}
        self._promoting: dict[str, threading.Lock] = {}
        self._unloader = ThreadPoolExecutor(1, thread_name_prefix="unload")
        self.refresh()
        for engine in self.engines.values():
            engine.on_up = self._engine_up
            engine.on_down = self._engine_down
            engine.on_state = self._engine_state

    def close(self) -> None:
        self._unloader.shutdown(wait=False, cancel_futures=True)

    # --- names

    def refresh(self) -> None:
        """Read the projects again: after one was added or changed."""
        with self._store.read() as conn:
            found = {project.name: project for project in projects.list_all(conn)}
        with self._changed:
            self._projects = found

    def project(self, name: str) -> Project:
        """Raises NotFound naming the projects that there are."""
        project = self._projects.get(name)
        if project is None:
            self.refresh()  # it may have been added by another process
            project = self._projects.get(name)
        if project is None:
            known = ", ".join(sorted(self._projects)) or "none yet"
            raise NotFound(f"There is no project {name!r}.", f"Projects: {known}.")
        return project

    @property
    def projects(self) -> list[Project]:
        return list(self._projects.values())

    def engine_of(self, project: Project) -> EngineProcess:
        engine = self.engines.get(project.base_model)
        if engine is None:
            raise EngineUnavailable(
                f"Project {project.name!r} is built on {project.base_model!r}, which is not served here.",
                f"It serves: {', '.join(sorted(self.engines))}. Start it with --model {project.base_model}.",
            )
        return engine

    def number_of(self, name: ModelName) -> int:
        """The version that `name` means now. Raises NotFound naming the versions that there are."""
        project = self.project(name.project)
        if name.which == "live":
            return project.live
        if name.which == BASE:
            return BASE
        if isinstance(name.which, int) and (name.project, name.which) in self._places:
            return name.which
        with self._store.read() as conn:
            if name.which != "candidate":
                return versions.get(conn, name.project, name.which).number
            newest = versions.list_by(conn, name.project, state=VersionState.CANDIDATE, limit=1)
            if newest:
                return newest[0].number
            others = versions.list_by(conn, name.project, limit=20)
        there = ", ".join(f"{version_name(v.project, v.number)} ({v.state})" for v in others)
        raise NotFound(
            f"The project {name.project!r} has no candidate now.",
            f"There are: {version_name(name.project, BASE)}{', ' + there if there else ''}.",
        )

    # --- leases

    def acquire(self, name: str | ModelName) -> Lease:
        """A hold on the version that `name` means now, loaded if it was not. Blocks while it loads.

        Raises:
            NotFound: No such project or version.
            EngineUnavailable: The engine is starting, restarting or down.
            Busy: All places for adapters are in use.
        """
        name = ModelName.parse(name) if isinstance(name, str) else name
        while True:
            lease = self._acquire_loaded(name)
            if lease is not None:
                return lease
            project = self.project(name.project)
            engine = self.engine_of(project)
            if engine.state is not EngineState.READY:
                raise engine.unavailable()
            return Lease(self, self._load(engine, project.name, self.number_of(name)))

    async def acquire_async(self, name: ModelName) -> Lease:
        """`acquire` for the event loop: at once when the version is loaded, else in a thread."""
        lease = self._acquire_loaded(name)
        if lease is not None:
            return lease
        loading = asyncio.get_running_loop().run_in_executor(None, self.acquire, name)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:  # the client left; the thread goes on and must not keep the hold
            loading.add_done_callback(_release_unwanted)
            raise

    def _acquire_loaded(self, name: ModelName) -> Lease | None:
        with self._changed:
            if name.which == "live":
                project = self._projects.get(name.project)
                number: Any = project.live if project else None
            else:
                number = name.which
            place = self._places.get((name.project, number))
            if (
                place is None
                or place.state is not PlaceState.LOADED
                or place.engine.state is not EngineState.READY
            ):
                return None
            lease = Lease(self, place)
            place.users += 1
            place.used_at = time.monotonic()
            return lease

    def _release(self, place: Place) -> None:
        with self._changed:
            place.users -= 1
            place.used_at = time.monotonic()
            if place.users == 0:
                self._changed.notify_all()
                if place.retiring:
                    self._unloader.submit(self._unload_idle, place)

    @contextmanager
    def holding(self, project: str, number: int) -> Iterator[Lease]:
        """Keep a version loaded while the block runs, e.g. both sides of a gate."""
        with self.acquire(ModelName(project, number)) as lease:
            yield lease

    def lost(self, place: Place) -> None:
        """The engine says that it does not know this adapter: it was restarted behind our back."""
        with self._changed:
            place.state = PlaceState.LOST
            if self._places.get((place.project, place.number)) is place:
                del self._places[place.project, place.number]
            self._changed.notify_all()

    def ensure_loaded(self, project: str, number: int) -> None:
        self.acquire(ModelName(project, number)).release()

    # --- loading and unloading

    def _load(self, engine: EngineProcess, project: str, number: int) -> Place:
        """The place of a version with one user more, loaded by this thread or by another."""
        key = (project, number)
        deadline = time.monotonic() + ROOM_SECONDS
        while True:
            evicted: Place | None = None
            with self._changed:
                place = self._places.get(key)
                if place is not None and place.state is PlaceState.LOADED:
                    place.users += 1
                    return place
                if place is None:
                    has_room, evicted = self._room(engine, number)
                    if has_room:
                        place = self._places[key] = Place(engine, project, number, BASE_NAME)
                        break
                if evicted is None:
                    if time.monotonic() > deadline:
                        raise Busy(
                            f"All places for adapters are in use, {version_name(project, number)} cannot be "
                            "loaded now.",
                            "Try again, or raise the setting max_loras.",
                            retry_after=5,
                        )
                    self._changed.wait(timeout=1.0)
            if evicted is not None:
                self._unload(evicted)
        try:
            if number != BASE:
                self._load_adapter(place)
            with self._changed:
                if self._places.get(key) is not place:
                    raise EngineUnavailable(
                        "The engine stopped while it loaded the version.", "Try again.", retry_after=5
                    )
                place.state = PlaceState.LOADED
                place.users += 1
                self._changed.notify_all()
        except BaseException:
            self.lost(place)
            raise
        return place

    def _load_adapter(self, place: Place) -> None:
        with self._store.read() as conn:
            version = versions.get(conn, place.project, place.number)
        if version.text_adapter is None:
            return  # a version of the image side alone answers as the base does
        place.model = version.adapter_name
        client = place.engine.client
        started = time.monotonic()
        try:
            client.load(version.adapter_name, version.text_adapter)
        except Conflict:
            # It has it already: from an earlier life of the service, or the answer to a load was lost.
            if version.adapter_name not in client.models():
                raise
        if version.adapter_name not in client.models():
            raise ModelError(
                f"The engine accepted {version.adapter_name} but does not list it.",
                f"See {place.engine.log_file}.",
            )
        self._events.publish(
            {
                "type": "version.loaded",
                "project": place.project,
                "version": place.number,
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    def _room(self, engine: EngineProcess, number: int) -> tuple[bool, Place | None]:
        """Whether one more may be loaded; else the idle one to unload for it, which is marked. Lock held.

        Live versions are never unloaded for others: with many projects there are two places beside them.
        """
        if number == BASE:
            return True, None
        live = {(project.name, project.live) for project in self._projects.values()}
        loaded = [p for p in self._places.values() if p.engine is engine and p.number != BASE]
        if len(loaded) < max(self._settings.max_loras, len(live) + 2):
            return True, None
        idle = [
            place
            for place in loaded
            if place.state is PlaceState.LOADED
            and place.users == 0
            and (place.project, place.number) not in live
        ]
        if not idle:
            return False, None
        oldest = min(idle, key=lambda place: place.used_at)
        oldest.state = PlaceState.UNLOADING
        return False, oldest

    def _unload_idle(self, place: Place) -> None:
        with self._changed:
            project = self._projects.get(place.project)
            if (
                place.users
                or place.state is not PlaceState.LOADED
                or (project is not None and project.live == place.number)
            ):
                return
            place.state = PlaceState.UNLOADING
        self._unload(place)

    def _unload(self, place: Place) -> None:
        """Take a version that is marked UNLOADING out of its engine."""
        try:
            if place.model != BASE_NAME:
                for pause in (0.05, 0.2, 0.5, 1.0, 2.0, 0):
                    try:
                        place.engine.client.unload(place.model)
                        break
                    except Conflict:  # a request whose client left is still being wound up
                        if not pause:
                            raise
                        time.sleep(pause)
        except (NotFound, EngineUnavailable):
            pass  # gone with its engine
        except ComfyLoopError as error:
            log.warning("%s stays loaded in the engine: %s", place.model, error)
        self.lost(place)
        self._events.publish({"type": "version.unloaded", "project": place.project, "version": place.number})

    # --- promote and roll back

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
        """Make version `number` (0: the base) the live one of `project`, without a pause for its clients.

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

    @contextmanager
    def _alone(self, project: str) -> Iterator[None]:
        lock = self._promoting.setdefault(project, threading.Lock())
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
        with self.acquire(ModelName(name, number)) as lease:
            clock.lap("load")
            progress("warm")
            self._warm_up(lease.place)
            clock.lap("warm")
            progress("flip")
            with self._store.begin() as conn:
                previous = projects.get(conn, name).live
                flipped = flip(conn)
                also(conn)
            with self._changed:
                self._projects = {**self._projects, name: flipped}
                lease.place.retiring = False
                old = self._places.get((name, previous)) if previous != number else None
                if old is not None:
                    old.retiring = True
            self.swaps += previous != number
            clock.lap("flip")
        self._events.publish(
            {"type": "version.promoted", "project": name, "version": number, "previous": previous}
        )
        if old is not None:
            progress("drain")
            self._unloader.submit(self._unload_idle, old)
            if drain_seconds:
                self._wait_gone(old, drain_seconds)
                clock.lap("drain")
        return Promotion(name, number, previous, clock.seconds)

    def _warm_up(self, place: Place) -> None:
        """Let the version answer the last question that the project was asked. Its answer is not recorded."""
        place.engine.client.chat(
            {
                "model": place.model,
                "messages": self._warm_messages(place.project),
                "max_tokens": WARM_TOKENS,
                "temperature": 0.0,
            }
        )
        place.warm = True

    def _warm_messages(self, project: str) -> list[dict[str, Any]]:
        with self._store.read() as conn:
            last = generations.list_by(conn, project, limit=1)
        try:
            return [wire_message(message, self._image_url) for message in last[0][1].messages]
        except (IndexError, ComfyLoopError):  # never asked, or its image has been deleted
            return [wire_message(Message.of("user", WARM_QUESTION), self._image_url)]

    def _image_url(self, sha256: str) -> str:
        return data_url(self._store.blobs.get(sha256), "image/png")

    def _wait_gone(self, place: Place, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while place.state is not PlaceState.LOST and time.monotonic() < deadline:
                self._changed.wait(timeout=0.5)

    # --- engines coming and going

    def _engine_up(self, engine: EngineProcess) -> None:
        """Load and warm the live versions of the engine's projects: then it counts as ready."""
        self._engine_down(engine)
        self.refresh()
        for project in self.projects:
            if self.engines.get(project.base_model) is not engine:
                continue
            try:
                place = self._load(engine, project.name, project.live)
            except EngineUnavailable:
                raise
            except ComfyLoopError as error:
                # One project's broken adapter does not keep the others from being served.
                log.error("The live version of %s cannot be loaded: %s", project.name, error)
                continue
            try:
                self._warm_up(place)
            except EngineUnavailable:
                raise
            except ComfyLoopError as error:
                log.error("The live version of %s does not answer: %s", project.name, error)
            finally:
                self._release(place)

    def _engine_down(self, engine: EngineProcess) -> None:
        with self._changed:
            for key, place in list(self._places.items()):
                if place.engine is engine:
                    place.state = PlaceState.LOST
                    del self._places[key]
            self._changed.notify_all()

    def _engine_state(self, engine: EngineProcess) -> None:
        self._events.publish(
            {"type": "engine.state", "engine": engine.name, "state": engine.state, "error": engine.error}
        )

    # --- what is so now

    def problems(self) -> dict[str, str]:
        """Why the live version of a project does not answer, by project; empty when all do."""
        found: dict[str, str] = {}
        for project in self.projects:
            try:
                engine = self.engine_of(project)
            except EngineUnavailable as error:
                found[project.name] = str(error)
                continue
            if engine.state is not EngineState.READY:
                found[project.name] = str(engine.unavailable())
                continue
            if project.live == BASE:
                continue  # it answers as soon as its engine does
            place = self._places.get((project.name, project.live))
            if place is None or place.state is not PlaceState.LOADED or not place.warm:
                found[project.name] = f"{version_name(project.name, project.live)} is not loaded."
        return found

    def loaded(self) -> list[tuple[str, int, int]]:
        """(project, version, requests on it) of everything that is loaded."""
        with self._changed:
            return [
                (place.project, place.number, place.users)
                for place in self._places.values()
                if place.state is PlaceState.LOADED
            ]


def _release_unwanted(loading: asyncio.Future[Lease]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().release()


class _Laps:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 4), now
