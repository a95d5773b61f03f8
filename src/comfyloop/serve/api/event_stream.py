"""Server-sent events that proxies pass on as they come, and do not take for dead while there is nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

QUIET_SECONDS = 15.0
"""nginx gives a silent connection up after 60 seconds, others after 30; a long prompt is read for longer than that."""
KEEP_ALIVE = b": still here\n\n"
"""A comment, which clients pass over."""


class EventStream(StreamingResponse):
    """Events as they come, each piece a whole one, and a comment after each `QUIET_SECONDS` without any."""

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        plain = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers={**(headers or {}), **plain})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()

        async def noted(message: Message) -> None:
            nonlocal last
            last = clock()
            if not message.get("more_body", True):
                keeping.cancel()
            await send(message)

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(last + QUIET_SECONDS - clock())
                if clock() >= last + QUIET_SECONDS:
                    await noted({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

        keeping = asyncio.create_task(keep_alive())
        try:
            await super().__call__(scope, receive, noted)
        finally:
            keeping.cancel()
