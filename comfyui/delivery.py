"""From the spool to the service, in order, in batches, each item exactly once (the ids are made here)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .service import Service, ServiceError
from .spool import Spool, SpoolEntry, SpoolError, images_of

MOST_AT_ONCE = 100
LONGEST_WAIT = 30.0  # seconds between tries while the service is away
TRIES = 3  # of one item on which the service itself breaks; twice as many for each that was put aside before it
BREAKS = frozenset({500, 501, 505, 508})  # not those by which a service says that it is away: 502, 503, 504, 507


class Delivery:
    """`run()` never ends and never raises. `state` is what the sidebar shows: empty when all is well.

    Args:
        on_delivered: Called when something has left the queue.
    """

    def __init__(
        self,
        spool: Callable[[], Spool],
        service: Callable[[], Service],
        on_delivered: Callable[[], None] = lambda: None,
    ) -> None:
        self._spool, self._service, self._on_delivered = spool, service, on_delivered
        self.state = ""
        self._wake = asyncio.Event()
        self._broke: dict[str, int] = {}  # item -> how often the service broke on it alone
        self._aside = 0  # items put aside since the service took one: if it breaks on all, it is not they

    def wake(self) -> None:
        """There is something new, or the service is back. Call it in the loop that runs `run`."""
        self._wake.set()

    async def run(self) -> None:
        """May be cancelled and started again at any moment."""
        wait = 0.5
        while True:
            self._wake.clear()
            try:
                await self.drain()
                self.state, wait = "", 0.5
            except (ServiceError, SpoolError) as error:
                self.state = str(error)
            except OSError as error:
                self.state = f"The spool cannot be read ({error.strerror}). Check the disk of ComfyUI's user folder."
            try:
                await asyncio.wait_for(self._wake.wait(), wait if self.state else 5)
            except asyncio.TimeoutError:
                wait = min(wait * 2, LONGEST_WAIT) if self.state else 0.5

    async def drain(self) -> None:
        """Deliver all that waits. Raises ServiceError while nobody takes it."""
        spool = await asyncio.to_thread(self._spool)
        if spool.waiting:
            await self._service().check()
            while await self.step(spool):
                self._on_delivered()

    async def step(self, spool: Spool) -> int:
        """Deliver one batch; returns how many entries left the queue."""
        entries = await asyncio.to_thread(spool.pending, MOST_AT_ONCE)
        if not entries:
            return 0
        try:
            await self._send(spool, entries)
        except ServiceError as error:
            if error.away and error.status not in BREAKS:
                raise
            for entry in entries:  # one bad item must not hold up the others
                await self._send_alone(spool, entry)
        else:
            await asyncio.to_thread(spool.delivered, entries)
        return len(entries)

    async def _send_alone(self, spool: Spool, entry: SpoolEntry) -> None:
        try:
            await self._send(spool, [entry])
        except ServiceError as error:
            if error.away and not self._is_to_blame(entry, error):
                raise
            await asyncio.to_thread(spool.refuse, entry, str(error))
        else:
            self._broke.clear()
            self._aside = 0
            await asyncio.to_thread(spool.delivered, [entry])

    def _is_to_blame(self, entry: SpoolEntry, error: ServiceError) -> bool:
        """Whether the service broke on this very item often enough to put it aside: it must not hold up the others."""
        if error.status not in BREAKS or entry.item is None:
            return False
        name = str(entry.item.get("id"))
        self._broke[name] = self._broke.get(name, 0) + 1
        if self._broke[name] < TRIES * 2**self._aside:
            return False
        self._aside += 1
        return True

    async def _send(self, spool: Spool, entries: list[SpoolEntry]) -> None:
        service = self._service()
        items = []
        for entry in entries:
            if entry.item is None:
                raise ServiceError("This line of the spool is damaged and cannot be read.", 400)
            items.append(entry.item)
        for sha in sorted(set().union(*map(images_of, items))):
            data = await asyncio.to_thread(spool.image, sha)
            if data is not None:  # else it was delivered before, or the service says that it lacks it
                await service.send_image(data)
        await service.send_feedback(items)
