"""Tell the service while ComfyUI works, so that training holds. Never in a prompt's way: it looks from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .service import Service, ServiceError

LEASE = 5.0  # seconds for which the service believes it
LOOK = 0.2  # seconds between looks: training holds within a second of a prompt's start


class ActivityReporter:
    """`working` tells whether a prompt is being executed and waits for nobody; `connected` whether to say so."""

    def __init__(
        self, service: Callable[[], Service], who: str, working: Callable[[], bool], connected: Callable[[], bool]
    ) -> None:
        self._service, self._who = service, who
        self._working, self._connected = working, connected

    async def run(self) -> None:
        said_at = 0.0  # 0: the service believes that nothing goes on here
        while True:
            working = self._working()
            due = time.monotonic() - said_at > LEASE / 2 if working else said_at > 0
            if due and self._connected():
                try:
                    await self._service().post("/v1/busy", {"who": self._who, "seconds": LEASE if working else 0})
                except ServiceError:
                    await asyncio.sleep(1)
                said_at = time.monotonic() if working else 0.0
            await asyncio.sleep(LOOK)
