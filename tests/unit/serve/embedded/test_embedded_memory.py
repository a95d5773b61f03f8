"""What an unloaded adapter leaves behind: nothing, and at once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest

from comfyloop.serve.embedded.app import create_app


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_that_answered_is_freed_without_the_garbage_collector(
    text_engine: Any, adapters: list[Path], stream: bool
) -> None:
    engine, name = text_engine.engine, f"freed-{stream}"
    text_engine.load(name, adapters[0])
    adapter = weakref.ref(engine.adapter(name))
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "stream": stream}

    async def ask() -> None:
        transport = httpx.ASGITransport(app=create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            answers = [client.post("/v1/chat/completions", json=body | {"model": m}) for m in (name, "base")]
            for answer in await asyncio.gather(*answers):
                assert answer.status_code == 200, answer.text

    gc.collect()
    gc.disable()
    try:
        asyncio.run(ask())
        engine.remove_adapter(name)
        assert adapter() is None
    finally:
        gc.enable()
