"""Which engine and which adapter answer for "acme": names (aliases.py), loaded versions (loaded_versions.py) and the
changing of what a name means (promotion.py), as one thing to call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Unpack

from comfyloop.errors import ComfyLoopError
from comfyloop.records import Project
from comfyloop.serve.engines.protocol import Engine
from comfyloop.serve.events import Events
from comfyloop.serve.routing.aliases import Aliases, answers
from comfyloop.serve.routing.handle import LoadedVersion, VersionHandle
from comfyloop.serve.routing.loaded_versions import LoadedVersions
from comfyloop.serve.routing.names import ModelName
from comfyloop.serve.routing.promotion import Also, MoveOptions, Promoter, Promotion, PromotionOptions
from comfyloop.serve.routing.traffic import Traffic
from comfyloop.settings import Settings
from comfyloop.store import Store

log = logging.getLogger(__name__)


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
        engines: Mapping[str, Engine],
        events: Events | None = None,
    ) -> None:
        events = events or Events()
        self._aliases = aliases = Aliases(store)
        self._loaded = LoadedVersions(settings, store, engines, aliases, events)
        self._promoter = Promoter(store, self._loaded, aliases, events)
        self.engines = self._loaded.engines
        self.traffic = Traffic()

    def close(self) -> None:
        self._loaded.close()

    @property
    def projects(self) -> list[Project]:
        return self._aliases.all()

    def project(self, name: str) -> Project:
        """Raises NotFound naming the projects that there are."""
        return self._aliases.get(name)

    def refresh(self) -> None:
        """Read the projects again: after one was added or changed."""
        self._aliases.refresh()

    def number_of(self, name: ModelName) -> int:
        """The version that `name` means now. Raises NotFound naming the versions that there are."""
        return self._aliases.number_of(name)

    def loaded(self) -> list[tuple[str, int, int]]:
        """(project, version, requests on it) of everything that is loaded."""
        return self._loaded.loaded()

    def find(self, project: str, number: int) -> LoadedVersion | None:
        return self._loaded.find(project, number)

    def lost(self, entry: LoadedVersion) -> None:
        """The engine says that it does not know this adapter: it was restarted behind our back."""
        self._loaded.lost(entry)

    def retire(self, project: str, number: int) -> LoadedVersion | None:
        """Unload a version as soon as its last request has ended."""
        return self._loaded.retire(project, number)

    def promote(self, project: str, number: int, **more: Unpack[PromotionOptions]) -> Promotion:
        """Make version `number` (0: the base) the live one of `project`: `Promoter.promote`."""
        return self._promoter.promote(project, number, **more)

    def rollback(self, project: str, number: int | None = None, **more: Unpack[MoveOptions]) -> Promotion:
        """Go back to version `number`, or to the one that was live before: `Promoter.rollback`."""
        return self._promoter.rollback(project, number, **more)

    def canary(self, project: str, number: int, share: float, *, also: Also = lambda conn: None) -> Promotion:
        """Have version `number` answer `share` of the conversations beside the live one: `Promoter.canary`."""
        return self._promoter.canary(project, number, share, also=also)

    @property
    def swaps(self) -> int:
        """Times that a live version was changed."""
        return self._promoter.swaps

    def acquire(self, name: str | ModelName) -> VersionHandle:
        """A hold on the version that `name` means now, loaded if it was not. Blocks while it loads.

        Raises:
            NotFound: No such project or version.
            EngineUnavailable: The engine is starting, restarting or down.
            QueueFull: All places for adapters are in use.
        """
        name = ModelName.parse(name) if isinstance(name, str) else name
        return self._take(name) or self._loaded.load(self.project(name.project), self.number_of(name))

    async def acquire_async(self, name: ModelName, conversation: str = "") -> VersionHandle:
        """`acquire` for the event loop: at once when the version is loaded, else in a thread.

        Args:
            conversation: What is the same in every turn of it; a share of conversations with the live version
                is answered by the canary, where there is one.
        """
        project = self._aliases.find(name.project)
        if name.which == "live" and project is not None and answers(project, conversation) != project.live:
            try:
                return await self.acquire_async(ModelName(name.project, project.canary))
            except ComfyLoopError as error:
                log.warning(
                    "The canary of %s does not answer, the live version does: %s", name.project, error
                )
        handle = self._take(name)
        if handle is not None:
            return handle
        loading = asyncio.get_running_loop().run_in_executor(None, self.acquire, name)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:  # the client left; the thread goes on and must not keep the hold
            loading.add_done_callback(_release_unwanted)
            raise

    def _take(self, name: ModelName) -> VersionHandle | None:
        """A hold without a look at the database, when the version is loaded."""
        if name.which == "candidate":
            return None
        project = self._aliases.find(name.project)
        if project is None:
            return None
        return self._loaded.take(name.project, project.live if name.which == "live" else name.which)

    @contextmanager
    def holding(self, project: str, number: int) -> Iterator[VersionHandle]:
        """Keep a version loaded while the block runs, e.g. both sides of a gate."""
        with self.acquire(ModelName(project, number)) as handle:
            yield handle

    def problems(self) -> dict[str, str]:
        """Why the live version of a project does not answer, by project; empty when all do."""
        found = {project.name: self._loaded.problem(project) for project in self.projects}
        return {name: problem for name, problem in found.items() if problem}


def _release_unwanted(loading: asyncio.Future[VersionHandle]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().release()
