"""What the API works with."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import Depends, WebSocket, WebSocketException
from fastapi.requests import HTTPConnection

from comfyloop import errors
from comfyloop.datasets import Imports
from comfyloop.recall import Recall, Tastes
from comfyloop.records import Flag, Forgotten, GateReport, Loop, LoopStatus, Pruned, QueueItem, Snapshot
from comfyloop.registry.archive import ArchivePiece
from comfyloop.registry.bundle import Imported
from comfyloop.registry.contents import BundleOptions
from comfyloop.registry.manifest import Manifest, SuiteScores
from comfyloop.serve.api.audit_log import AuditLog
from comfyloop.serve.api.metrics_registry import Metrics
from comfyloop.serve.api.recorder import Recorder
from comfyloop.serve.engines.client import AsyncEngineClient
from comfyloop.serve.events import Events
from comfyloop.serve.routing.activity import ActivitySignal
from comfyloop.serve.routing.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store

MOST_HEAVY = 4
"""Snapshots and gates that requests may have under way at a time."""


class LoopControl(Protocol):
    """The part of the loop's controller that the API uses."""

    @property
    def events(self) -> Events: ...

    def status(self, project: str) -> LoopStatus: ...

    def prune(self, *, dry_run: bool = False) -> Pruned:
        """Remove what the settings `keep_versions` and `keep_runs` let go."""

    def request(self, project: str, *, consolidate: bool = False) -> Loop | None:
        """Start a turn by hand."""

    def forget(
        self,
        project: str,
        *,
        author: str | None = None,
        feedback_id: str | None = None,
        sample: str | None = None,
    ) -> Forgotten:
        """Take feedback back, and the versions that learned from it."""

    def forget_rows(self, project: str, ids: Sequence[str]) -> Forgotten:
        """Take back what was added as a data set, which may be added anew."""

    def cancel(self, project: str) -> Loop | None:
        """Stop the present turn; what was trained so far is kept."""

    def flags(self, project: str) -> list[Flag]:
        """What people are asked about its feedback. Blocks while it is looked for."""

    def gather(self, project: str, number: int, wanted: BundleOptions) -> tuple[Manifest, list[ArchivePiece]]:
        """What a bundle of a version would hold."""

    def export(self, project: str, number: int, wanted: BundleOptions) -> Path:
        """A bundle of a version, in a file that the caller removes."""

    def evaluate(self, project: str, number: int) -> list[SuiteScores]:
        """How a version stands beside its base model, for its card. Blocks while both are asked."""

    def adopt(self, project: str, file: Path, *, trust_new_key: bool = False) -> Imported:
        """Take a bundle in as a new candidate."""

    def snapshot(self, project: str) -> Snapshot:
        """Curate now, without a run. Blocks while it works."""

    def queue(self, project: str) -> Sequence[QueueItem]:
        """What a person should look at. Blocks while it is made."""

    def gate(self, project: str, number: int) -> GateReport:
        """Judge a version against the live one again. Blocks while it works."""


@dataclass
class Services:
    """One running service. `create_app` opens the rest of the fields and closes them at shutdown."""

    settings: Settings
    store: Store
    router: Router
    controller: LoopControl
    metrics: Metrics = field(default_factory=Metrics)
    recorder: Recorder = field(init=False)
    engines: AsyncEngineClient = field(init=False)
    audit: AuditLog = field(init=False)
    recall: Recall = field(init=False)
    tastes: Tastes = field(init=False)
    imports: Imports = field(init=False)
    sockets: Counter[str] = field(default_factory=Counter)
    """Open WebSockets by kind."""
    _heavy: set[str] = field(default_factory=set)
    _heavy_lock: threading.Lock = field(default_factory=threading.Lock)
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.audit = AuditLog(self.settings.home)
        self.recall = Recall(self.store)
        self.tastes = Tastes(self.store, self.settings.max_image_pixels)
        self.imports = Imports(self.store, self.settings, lambda event: self.controller.events.publish(event))

    @property
    def busy(self) -> ActivitySignal:
        """Programs that say that a person waits for them."""
        return self.router.traffic.busy

    @contextmanager
    def heavily(self, what: str) -> Iterator[None]:
        """Hold one of the few places for work that keeps a thread and the disk busy for long.

        Raises:
            errors.QueueFull: The same is being done, or all places are taken.
        """
        with self._heavy_lock:
            if what in self._heavy or len(self._heavy) >= MOST_HEAVY:
                doing = f"{what} is under way" if what in self._heavy else "Other such work is under way"
                raise errors.QueueFull(
                    f"{doing[0].upper()}{doing[1:]}.", "Try again when it has ended.", retry_after=5
                )
            self._heavy.add(what)
        try:
            yield
        finally:
            with self._heavy_lock:
                self._heavy.discard(what)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run to its end what the present request must not wait for."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


@asynccontextmanager
async def one_of(socket: WebSocket, services: Services, kind: str, most: int) -> AsyncIterator[None]:
    """A place among the open WebSockets of a kind. With none left it is closed (1013: try again later)."""
    if services.sockets[kind] >= most:
        raise WebSocketException(1013, f"{most} connections of this kind are open.")
    services.sockets[kind] += 1
    try:
        yield
    finally:
        services.sockets[kind] -= 1


async def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


Svc = Annotated[Services, Depends(_services)]
