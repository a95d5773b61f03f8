"""What the API works with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends
from fastapi.requests import HTTPConnection

from comfyloop.recall import Recall
from comfyloop.records import GateReport, Loop, LoopStatus, Snapshot
from comfyloop.serve.busy import Busy
from comfyloop.serve.client import AsyncEngineClient
from comfyloop.serve.events import Events
from comfyloop.serve.metrics import Metrics
from comfyloop.serve.recorder import Recorder
from comfyloop.serve.router import Router
from comfyloop.settings import Settings
from comfyloop.store import Store


class Controller(Protocol):
    """The part of the loop's controller that the API uses."""

    @property
    def events(self) -> Events: ...

    def status(self, project: str) -> LoopStatus: ...

    def request(self, project: str, *, consolidate: bool = False) -> Loop | None:
        """Start a turn by hand."""

    def cancel(self, project: str) -> Loop | None:
        """Stop the present turn; what was trained so far is kept."""

    def snapshot(self, project: str) -> Snapshot:
        """Curate now, without a run. Blocks while it works."""

    def gate(self, project: str, number: int) -> GateReport:
        """Judge a version against the live one again. Blocks while it works."""


@dataclass
class Services:
    """One running service. `create_app` opens the rest of the fields and closes them at shutdown."""

    settings: Settings
    store: Store
    router: Router
    controller: Controller
    metrics: Metrics = field(default_factory=Metrics)
    recorder: Recorder = field(init=False)
    engines: AsyncEngineClient = field(init=False)
    recall: Recall = field(init=False)
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.recall = Recall(self.store)

    @property
    def busy(self) -> Busy:
        """Programs that say that a person waits for them."""
        return self.router.traffic.busy

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run to its end what the present request must not wait for."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _services(connection: HTTPConnection) -> Services:
    services: Services = connection.app.state.services
    return services


Svc = Annotated[Services, Depends(_services)]
