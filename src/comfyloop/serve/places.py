"""Which engine holds which version: load -> verify -> warm, and at the end drain and unload.

Every request holds a `Lease` on the version on which it started, so that a version is unloaded only when
nobody uses it. Which version a name means is none of this module's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from comfyloop import data_urls, integrity
from comfyloop.errors import Busy, ComfyLoopError, Conflict, EngineUnavailable, ModelError, NotFound
from comfyloop.records import BASE, Message, Project
from comfyloop.serve.aliases import Aliases
from comfyloop.serve.client import wire_message
from comfyloop.serve.engine import Engine, EngineState
from comfyloop.serve.events import Events
from comfyloop.serve.names import version_name
from comfyloop.serve.place import Lease, Place, PlaceState
from comfyloop.settings import Settings
from comfyloop.store import Store, generations, versions

log = logging.getLogger(__name__)

ROOM_SECONDS = 30.0
"""How long a request waits for a place among the loaded adapters."""
WARM_TOKENS = 2
WARM_QUESTION = "Hello! Who are you?"


class Places:
    """The versions that are loaded. Thread-safe. `close()` it at the end.

    Args:
        engines: One engine for each base model, keyed by `Project.base_model`. They are watched from now on;
            starting and stopping them is the caller's.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        engines: Mapping[str, Engine],
        aliases: Aliases,
        events: Events,
    ) -> None:
        self.engines = dict(engines)
        self._settings = settings
        self._store = store
        self._aliases = aliases
        self._events = events
        self._changed = threading.Condition()
        self._places: dict[tuple[str, int], Place] = {}
        self._refusals: dict[tuple[str, int], str] = {}  # why the last try to load a version failed
        self._unloader = ThreadPoolExecutor(1, thread_name_prefix="unload")
        for engine in self.engines.values():
            engine.on_up = self._engine_up
            engine.on_down = self._engine_down
            engine.on_state = self._engine_state

    def close(self) -> None:
        self._unloader.shutdown(wait=False, cancel_futures=True)

    def engine_of(self, project: Project) -> Engine:
        engine = self.engines.get(project.base_model)
        if engine is None:
            raise EngineUnavailable(
                f"Project {project.name!r} is built on {project.base_model!r}, which is not served here.",
                f"It serves: {', '.join(sorted(self.engines))}. Start it with --model {project.base_model}.",
            )
        return engine

    def find(self, project: str, number: int) -> Place | None:
        return self._places.get((project, number))

    def loaded(self) -> list[tuple[str, int, int]]:
        """(project, version, requests on it) of everything that is loaded."""
        with self._changed:
            return [
                (place.project, place.number, place.users)
                for place in self._places.values()
                if place.state is PlaceState.LOADED
            ]

    # --- leases

    def take(self, project: str, number: int) -> Lease | None:
        """A hold on a version that is loaded and answers; None when it is not."""
        with self._changed:
            place = self._places.get((project, number))
            if (
                place is None
                or place.state is not PlaceState.LOADED
                or place.engine.state is not EngineState.READY
            ):
                return None
            lease = Lease(place, self.release)
            place.users += 1
            place.used_at = time.monotonic()
            return lease

    def load(self, project: Project, number: int) -> Lease:
        """A hold on a version, which is loaded first if it is not. Blocks while it loads.

        Raises:
            NotFound: No such version.
            EngineUnavailable: The engine is starting, restarting or down.
            Busy: All places for adapters are in use.
        """
        engine = self.engine_of(project)
        if engine.state is not EngineState.READY:
            raise engine.unavailable()
        place = self._load(engine, project.name, number)
        try:
            return Lease(place, self.release)
        except EngineUnavailable:  # it died just now
            self.release(place)
            raise

    def release(self, place: Place) -> None:
        with self._changed:
            place.users -= 1
            place.used_at = time.monotonic()
            if place.users == 0:
                self._changed.notify_all()
                if place.retiring:
                    self._unloader.submit(self._unload_idle, place)

    def lost(self, place: Place) -> None:
        """The engine says that it does not know this adapter: it was restarted behind our back."""
        with self._changed:
            place.state = PlaceState.LOST
            if self._places.get((place.project, place.number)) is place:
                del self._places[place.project, place.number]
            self._changed.notify_all()

    # --- loading, warming

    def _load(self, engine: Engine, project: str, number: int) -> Place:
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
                        place = self._places[key] = Place(engine, project, number, engine.base_name)
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
            self._refusals.pop(key, None)
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
        except BaseException as error:
            if isinstance(error, ComfyLoopError):
                self._refusals[key] = str(error)
            self.lost(place)
            raise
        return place

    def _load_adapter(self, place: Place) -> None:
        with self._store.read() as conn:
            version = versions.get(conn, place.project, place.number)
            integrity.check(conn, version)
        if version.text_adapter is None:
            return  # a version of the image side alone answers as the base does
        engine = place.engine
        started = time.monotonic()
        engine.load(version.adapter_name, version.text_adapter)
        if version.adapter_name not in engine.client.models():
            raise ModelError(
                f"The engine accepted {version.adapter_name} but does not list it.", f"See {engine.log_file}."
            )
        place.model = version.adapter_name
        self._events.publish(
            {
                "type": "version.loaded",
                "project": place.project,
                "version": place.number,
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    def _room(self, engine: Engine, number: int) -> tuple[bool, Place | None]:
        """Whether one more may be loaded; else the idle one to unload for it, which is marked. Lock held.

        Live versions are never unloaded for others: with many projects there are two places beside them.
        """
        if number == BASE:
            return True, None
        kept = self._aliases.kept()
        loaded = [p for p in self._places.values() if p.engine is engine and p.number != BASE]
        if len(loaded) < max(self._settings.max_loras, len(kept) + 2):
            return True, None
        idle = [
            place
            for place in loaded
            if place.state is PlaceState.LOADED
            and place.users == 0
            and (place.project, place.number) not in kept
        ]
        if not idle:
            return False, None
        oldest = min(idle, key=lambda place: place.used_at)
        oldest.state = PlaceState.UNLOADING
        return False, oldest

    def warm_up(self, place: Place) -> None:
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
        return data_urls.encode(self._store.blobs.get(sha256))

    # --- draining, unloading

    def retire(self, project: str, number: int) -> Place | None:
        """Unload a version as soon as its last request has ended; `keep` takes that back."""
        with self._changed:
            place = self._places.get((project, number))
            if place is not None:
                place.retiring = True
                self._unloader.submit(self._unload_idle, place)
        return place

    def keep(self, place: Place) -> None:
        with self._changed:
            place.retiring = False

    def wait_gone(self, place: Place, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while place.state is not PlaceState.LOST and time.monotonic() < deadline:
                self._changed.wait(timeout=0.5)

    def _unload_idle(self, place: Place) -> None:
        with self._changed:
            if (
                place.users
                or not place.retiring
                or place.state is not PlaceState.LOADED
                or (place.project, place.number) in self._aliases.kept()
            ):
                return
            place.state = PlaceState.UNLOADING
        self._unload(place)

    def _unload(self, place: Place) -> None:
        """Take a version that is marked UNLOADING out of its engine."""
        try:
            if place.model != place.engine.base_name:
                for pause in (0.05, 0.2, 0.5, 1.0, 2.0, 0):
                    try:
                        place.engine.unload(place.model)
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

    # --- engines coming and going

    def _engine_up(self, engine: Engine) -> None:
        """Load and warm the live versions of the engine's projects: then it counts as ready."""
        self._engine_down(engine)
        self._aliases.refresh()
        for project in self._aliases.all():
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
                self.warm_up(place)
            except EngineUnavailable:
                raise
            except ComfyLoopError as error:
                log.error("The live version of %s does not answer: %s", project.name, error)
            finally:
                self.release(place)

    def _engine_down(self, engine: Engine) -> None:
        with self._changed:
            for key, place in list(self._places.items()):
                if place.engine is engine:
                    place.state = PlaceState.LOST
                    del self._places[key]
            self._changed.notify_all()

    def _engine_state(self, engine: Engine) -> None:
        self._events.publish(
            {"type": "engine.state", "engine": engine.name, "state": engine.state, "error": engine.error}
        )

    def problem(self, project: Project) -> str:
        """Why the live version of a project does not answer; empty when it does."""
        try:
            engine = self.engine_of(project)
        except EngineUnavailable as error:
            return str(error)
        if engine.state is not EngineState.READY:
            return str(engine.unavailable())
        if not engine.answers():
            return "The engine has just stopped, or does not answer."
        if project.live == BASE:
            return ""  # it answers as soon as its engine does
        place = self.find(project.name, project.live)
        if place is None or place.state is not PlaceState.LOADED or not place.warm:
            why = self._refusals.get((project.name, project.live), "")
            return f"{version_name(project.name, project.live)} is not loaded. {why}".strip()
        return ""
