"""Which engine holds which version: load -> verify -> warm, and at the end drain and unload.

Every request holds a `VersionHandle` on the version on which it started, so that a version is unloaded only when
nobody uses it. Which version a name means is none of this module's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from comfyloop import integrity
from comfyloop.errors import ComfyLoopError, Conflict, EngineUnavailable, ModelError, NotFound, QueueFull
from comfyloop.media import data_urls
from comfyloop.records import BASE, Message, Project
from comfyloop.serve.engines.protocol import Engine, EngineState, sleeper_of
from comfyloop.serve.events import Events
from comfyloop.serve.routing.aliases import Aliases
from comfyloop.serve.routing.handle import LoadedState, LoadedVersion, VersionHandle
from comfyloop.serve.routing.names import version_name
from comfyloop.settings import Settings
from comfyloop.store import Store, generations, versions
from comfyloop.wire import wire_message

log = logging.getLogger(__name__)

ROOM_SECONDS = 30.0
"""How long a request waits for room among the loaded adapters."""
WARM_TOKENS = 2
WARM_QUESTION = "Hello! Who are you?"


class LoadedVersions:
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
        self._loaded: dict[tuple[str, int], LoadedVersion] = {}
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

    def find(self, project: str, number: int) -> LoadedVersion | None:
        return self._loaded.get((project, number))

    def loaded(self) -> list[tuple[str, int, int]]:
        """(project, version, requests on it) of everything that is loaded."""
        with self._changed:
            return [
                (entry.project, entry.number, entry.users)
                for entry in self._loaded.values()
                if entry.state is LoadedState.LOADED
            ]

    # --- leases

    def take(self, project: str, number: int) -> VersionHandle | None:
        """A hold on a version that is loaded and answers; None when it is not."""
        with self._changed:
            entry = self._loaded.get((project, number))
            if (
                entry is None
                or entry.state is not LoadedState.LOADED
                or entry.engine.state is not EngineState.READY
            ):
                return None
            handle = VersionHandle(entry, self.release)
            entry.users += 1
            entry.used_at = time.monotonic()
            return handle

    def load(self, project: Project, number: int) -> VersionHandle:
        """A hold on a version, which is loaded first if it is not. Blocks while it loads.

        Raises:
            NotFound: No such version.
            EngineUnavailable: The engine is starting, restarting or down.
            QueueFull: All places for adapters are in use.
        """
        engine = self.engine_of(project)
        if engine.state is not EngineState.READY:
            raise engine.unavailable()
        entry = self._load(engine, project.name, number)
        try:
            return VersionHandle(entry, self.release)
        except EngineUnavailable:  # it died just now
            self.release(entry)
            raise

    def release(self, entry: LoadedVersion) -> None:
        with self._changed:
            entry.users -= 1
            entry.used_at = time.monotonic()
            if entry.users == 0:
                self._changed.notify_all()
                if entry.retiring:
                    self._unloader.submit(self._unload_idle, entry)

    def lost(self, entry: LoadedVersion) -> None:
        """The engine says that it does not know this adapter: it was restarted behind our back."""
        with self._changed:
            entry.state = LoadedState.LOST
            if self._loaded.get((entry.project, entry.number)) is entry:
                del self._loaded[entry.project, entry.number]
            self._changed.notify_all()

    # --- loading, warming

    def _load(self, engine: Engine, project: str, number: int) -> LoadedVersion:
        """The entry of a version with one user more, loaded by this thread or by another."""
        key = (project, number)
        deadline = time.monotonic() + ROOM_SECONDS
        while True:
            evicted: LoadedVersion | None = None
            with self._changed:
                entry = self._loaded.get(key)
                if entry is not None and entry.state is LoadedState.LOADED:
                    entry.users += 1
                    return entry
                if entry is None:
                    has_room, evicted = self._room(engine, number)
                    if has_room:
                        entry = self._loaded[key] = LoadedVersion(engine, project, number, engine.base_name)
                        break
                if evicted is None:
                    if time.monotonic() > deadline:
                        raise QueueFull(
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
                self._load_adapter(entry)
            with self._changed:
                if self._loaded.get(key) is not entry:
                    raise EngineUnavailable(
                        "The engine stopped while it loaded the version.", "Try again.", retry_after=5
                    )
                entry.state = LoadedState.LOADED
                entry.users += 1
                self._changed.notify_all()
        except BaseException as error:
            if isinstance(error, ComfyLoopError):
                self._refusals[key] = str(error)
            self.lost(entry)
            raise
        return entry

    def _load_adapter(self, entry: LoadedVersion) -> None:
        with self._store.read() as conn:
            version = versions.get(conn, entry.project, entry.number)
            integrity.check(conn, version)
        if version.text_adapter is None:
            return  # a version of the image side alone answers as the base does
        engine = entry.engine
        started = time.monotonic()
        engine.load(version.adapter_name, version.text_adapter)
        if version.adapter_name not in engine.client.models():
            raise ModelError(
                f"The engine accepted {version.adapter_name} but does not list it.", f"See {engine.log_file}."
            )
        entry.model = version.adapter_name
        self._events.publish(
            {
                "type": "version.loaded",
                "project": entry.project,
                "version": entry.number,
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    def _room(self, engine: Engine, number: int) -> tuple[bool, LoadedVersion | None]:
        """Whether one more may be loaded; else the idle one to unload for it, which is marked. Lock held.

        Live versions are never unloaded for others: with many projects there are two places beside them.
        """
        if number == BASE:
            return True, None
        kept = self._aliases.kept()
        loaded = [p for p in self._loaded.values() if p.engine is engine and p.number != BASE]
        if len(loaded) < max(self._settings.max_loras, len(kept) + 2):
            return True, None
        idle = [
            entry
            for entry in loaded
            if entry.state is LoadedState.LOADED
            and entry.users == 0
            and (entry.project, entry.number) not in kept
        ]
        if not idle:
            return False, None
        oldest = min(idle, key=lambda entry: entry.used_at)
        oldest.state = LoadedState.UNLOADING
        return False, oldest

    def warm_up(self, entry: LoadedVersion) -> None:
        """Let the version answer the last question that the project was asked. Its answer is not recorded."""
        entry.engine.client.chat(
            {
                "model": entry.model,
                "messages": self._warm_messages(entry.project),
                "max_tokens": WARM_TOKENS,
                "temperature": 0.0,
            }
        )
        entry.warm = True

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

    def retire(self, project: str, number: int) -> LoadedVersion | None:
        """Unload a version as soon as its last request has ended; `keep` takes that back."""
        with self._changed:
            entry = self._loaded.get((project, number))
            if entry is not None:
                entry.retiring = True
                self._unloader.submit(self._unload_idle, entry)
        return entry

    def keep(self, entry: LoadedVersion) -> None:
        with self._changed:
            entry.retiring = False

    def wait_gone(self, entry: LoadedVersion, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while entry.state is not LoadedState.LOST and time.monotonic() < deadline:
                self._changed.wait(timeout=0.5)

    def _unload_idle(self, entry: LoadedVersion) -> None:
        with self._changed:
            if (
                entry.users
                or not entry.retiring
                or entry.state is not LoadedState.LOADED
                or (entry.project, entry.number) in self._aliases.kept()
            ):
                return
            entry.state = LoadedState.UNLOADING
        self._unload(entry)

    def _unload(self, entry: LoadedVersion) -> None:
        """Take a version that is marked UNLOADING out of its engine."""
        try:
            if entry.model != entry.engine.base_name:
                for pause in (0.05, 0.2, 0.5, 1.0, 2.0, 0):
                    try:
                        entry.engine.unload(entry.model)
                        break
                    except Conflict:  # a request whose client left is still being wound up
                        if not pause:
                            raise
                        time.sleep(pause)
        except (NotFound, EngineUnavailable):
            pass  # gone with its engine
        except ComfyLoopError as error:
            log.warning("%s stays loaded in the engine: %s", entry.model, error)
        self.lost(entry)
        self._events.publish({"type": "version.unloaded", "project": entry.project, "version": entry.number})

    # --- engines coming and going

    def _engine_up(self, engine: Engine) -> None:
        """Load and warm the live versions of the engine's projects: then it counts as ready."""
        self._engine_down(engine)
        self._aliases.refresh()
        for project in self._aliases.all():
            if self.engines.get(project.base_model) is not engine:
                continue
            try:
                entry = self._load(engine, project.name, project.live)
            except EngineUnavailable:
                raise
            except ComfyLoopError as error:
                # One project's broken adapter does not keep the others from being served.
                log.error("The live version of %s cannot be loaded: %s", project.name, error)
                continue
            try:
                self.warm_up(entry)
            except EngineUnavailable:
                raise
            except ComfyLoopError as error:
                log.error("The live version of %s does not answer: %s", project.name, error)
            finally:
                self.release(entry)

    def _engine_down(self, engine: Engine) -> None:
        with self._changed:
            for key, entry in list(self._loaded.items()):
                if entry.engine is engine:
                    entry.state = LoadedState.LOST
                    del self._loaded[key]
            self._changed.notify_all()

    def _engine_state(self, engine: Engine) -> None:
        sleeper = sleeper_of(engine)
        self._events.publish(
            {
                "type": "engine.state",
                "engine": engine.name,
                "state": engine.state,
                "error": engine.error,
                "is_sleeping": sleeper is not None and sleeper.is_sleeping,
            }
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
        entry = self.find(project.name, project.live)
        if entry is None or entry.state is not LoadedState.LOADED or not entry.warm:
            why = self._refusals.get((project.name, project.live), "")
            return f"{version_name(project.name, project.live)} is not loaded. {why}".strip()
        return ""
