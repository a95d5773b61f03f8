"""Server-sent events through proxies: passed on at once, and not taken for dead while a long prompt is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from comfyloop.serve.api import event_stream


def test_silence_is_filled_with_comments_and_nothing_follows_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "QUIET_SECONDS", 0.01)
    sent: list[Message] = []

    async def serve() -> None:
        twice = asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await twice.wait()
            yield b"data: 2\n\n"

        async def send(message: Message) -> None:
            sent.append(message)
            if sum(m.get("body") == event_stream.KEEP_ALIVE for m in sent) == 2:
                twice.set()
            if not message.get("more_body", True):
                await asyncio.sleep(0.05)  # a slow client: the last piece is still on its way

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        await event_stream.EventStream(events(), {"X-One": "1"})(scope, receive, send)

    asyncio.run(serve())
    start, *bodies = sent
    headers = dict(start["headers"])
    assert headers[b"x-accel-buffering"] == b"no" and headers[b"cache-control"] == b"no-store"
    assert headers[b"x-one"] == b"1" and headers[b"content-type"].startswith(b"text/event-stream")
    kept = event_stream.KEEP_ALIVE
    assert kept.startswith(b":") and kept.endswith(b"\n\n")
    said = [message["body"] for message in bodies]
    assert said[0] == b"data: 1\n\n" and said[1:3] == [kept, kept] and said[-2:] == [b"data: 2\n\n", b""]
    assert [message["more_body"] for message in bodies].count(False) == 1
