"""Talking to the service in the pack's own thread, while the loop that asks stands still or is stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui.host import Host
from comfyui.pack import Pack


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    host = Host(lambda _: None, lambda _: False, lambda: False, lambda _: None, lambda _c, _i: "value")
    pack = Pack(tmp_path, host, lambda *_: None)
    pack.start()
    yield pack
    pack.loop.call_soon_threadsafe(pack.loop.stop)


def test_a_loop_that_stands_still_does_not_hold_the_call(pack: Pack) -> None:
    async def answer() -> float:
        async with asyncio.timeout(
            0.5
        ):  # as a limit for connecting: it would pass while the other loop stands
            await asyncio.sleep(0.1)
            return time.monotonic()

    async def node() -> float:
        asking = asyncio.ensure_future(pack.apart(answer()))
        await asyncio.sleep(0)
        time.sleep(0.8)  # another node loads a model
        return await asking

    started = time.monotonic()
    assert asyncio.run(node()) - started < 0.5


def test_stopping_gives_the_call_up_at_once(pack: Pack) -> None:
    given_up = []

    async def answer() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            given_up.append(time.monotonic())

    def stop() -> None:
        if time.monotonic() - started > 0.2:
            raise InterruptedError

    started = time.monotonic()
    with pytest.raises(InterruptedError):
        asyncio.run(pack.apart(answer(), stop))
    for _ in range(50):
        if given_up:
            break
        time.sleep(0.02)
    assert given_up and time.monotonic() - started < 2


def test_an_error_of_the_service_arrives_as_it_is(pack: Pack) -> None:
    async def answer() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        asyncio.run(pack.apart(answer()))
