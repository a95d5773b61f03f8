"""Unload ComfyUI's models before a training run, where the person allows it: as ComfyUI's own /free does, and never
while anything runs or waits in the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .service import Service, ServiceError

LOOK = 0.5
IDLE = 5.0  # seconds without a prompt after which the person is taken to have paused


class Unloader:
    """
    Args:
        allowed: Whether the person allows it.
        idle: Whether no prompt runs, and none waits.
        free_bytes: What is free of the device's memory.
        unload: Has ComfyUI unload its models.
    """

    def __init__(
        self,
        service: Callable[[], Service],
        allowed: Callable[[], bool],
        idle: Callable[[], bool],
        free_bytes: Callable[[], int],
        unload: Callable[[], None],
    ) -> None:
        self._service, self._allowed = service, allowed
        self._idle, self._free_bytes, self._unload = idle, free_bytes, unload
        self._wanted: set[str] = set()  # projects whose run has begun, and was not made room for yet

    def on_event(self, event: dict[str, Any]) -> None:
        """Of the service: a run begins, or is over."""
        if event.get("type") == "loop.state":
            change = self._wanted.add if event.get("state") == "training" else self._wanted.discard
            change(str(event.get("project")))

    async def run(self) -> None:
        idle_since = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            if not self._idle():
                idle_since = time.monotonic()
            elif self._wanted and self._allowed() and time.monotonic() - idle_since >= IDLE:
                try:
                    taken = int((await self._service().get("/v1/busy")).get("run_memory_bytes", 0))
                except ServiceError:
                    continue
                # 0: it is not known yet what the run takes
                if self._idle() and not 0 < taken <= self._free_bytes():
                    self._unload()
                self._wanted.clear()
