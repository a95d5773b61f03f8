"""Connections that send nothing: closed after a while, the oldest first when there are too many.

uvicorn waits for ever for the first request of a connection. A thousand that never come would use up this process's
files, and shut out everyone else.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 15.0
"""A connection has so long for the line and headers of a request."""
MOST_WAITING = 512
"""Connections without a request under way; each more closes the one that has waited longest."""


def protocol(seconds: float = HEADER_SECONDS, most: int = MOST_WAITING) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with these limits, for one server."""
    waiting: dict[Any, None] = {}

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait()
            if len(waiting) > most:
                next(iter(waiting)).transport.abort()

        def connection_lost(self, error: Exception | None) -> None:
            self._go_on()
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._go_on()
            elif self._timer is None and not self.transport.is_closing():
                self._wait()

        def handle_websocket_upgrade(self, *given: Any) -> None:
            self._go_on()
            super().handle_websocket_upgrade(*given)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                waiting[self] = None  # uvicorn itself closes it when it stays idle

        def _wait(self) -> None:
            waiting[self] = None
            self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _go_on(self) -> None:
            waiting.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient
