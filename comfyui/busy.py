"""Tell the service while ComfyUI works, so that training holds. Never in a prompt's way: it looks from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .service import Service, ServiceError

LEASE = 5.0  # seconds for which the service believes it
LOOK = 0.2  # seconds between looks: training holds within a second of a prompt's start


class ActivityReporter:
    """`working` tells whether a prompt is being executed and waits for nobody; `connected` whether to say so; `memory`
    what ComfyUI's work needs of the device's memory, and what it has or could take."""

    def __init__(
        self,
        service: Callable[[], Service],
        who: str,
        working: Callable[[], bool],
        connected: Callable[[], bool],
        memory: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._service, self._who = service, who
        self._working, self._connected = working, connected
        self._memory = memory
        self._most = 0  # bytes that its work has needed so far

    def _lacking(self) -> int:
        """Bytes of the device's memory that the work needs, as far as it is known by now, and has not."""
        needed, had = self._memory()
        self._most = max(self._most, needed)
        return max(0, self._most - had)

    async def run(self) -> None:
        said_at = 0.0  # 0: the service believes that nothing goes on here
        while True:
            working = self._working()
            due = time.monotonic() - said_at > LEASE / 2 if working else said_at > 0
            if due and self._connected():
                try:
                    said = {"who": self._who, "seconds": LEASE if working else 0}
                    if working and (lacking := self._lacking()):
                        said["memory_bytes"] = lacking
                    await self._service().post("/v1/busy", said)
                except ServiceError:
                    await asyncio.sleep(1)
                said_at = time.monotonic() if working else 0.0
            await asyncio.sleep(LOOK)
