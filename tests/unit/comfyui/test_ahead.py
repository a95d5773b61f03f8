"""The model is awake before a graph that asks it gets to asking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from comfyui.ahead import WakeAhead, models_asked
from comfyui.service import Service

ASK = {"class_type": "ComfyLoopAsk", "inputs": {"question": "What?", "model": " acme@3 "}}
WRITE = {"class_type": "ComfyLoopWritePrompt", "inputs": {"brief": "a fox", "model": ""}}
LINKED = {"class_type": "ComfyLoopAsk", "inputs": {"question": "What?", "model": ["4", 0]}}
PAINT = {"class_type": "KSampler", "inputs": {"steps": 20, "model": ["1", 0]}}


def test_models_are_those_that_the_nodes_name() -> None:
    assert models_asked({"1": PAINT}, "mine") == []
    assert models_asked({"1": ASK, "2": WRITE, "3": LINKED, "4": PAINT}, "mine") == ["acme@3", "mine"]


@pytest.fixture
def service() -> Iterator[SimpleNamespace]:
    """Where calls arrive; the first one is refused."""
    called: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            called.append(self.path)
            self.send_response(503 if len(called) == 1 else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"is_sleeping": false, "error": {"message": "no room"}}')

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}", called=called)
    server.shutdown()
    server.server_close()


def test_each_prompt_wakes_it_once_and_one_that_asks_nothing_does_not(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyui.ahead.LOOK", 0.005)
    queue = [("a", {"1": PAINT}), ("b", {"1": WRITE})]
    connected = [False]
    ahead = WakeAhead(lambda: Service(service.url), lambda: queue, lambda: "mine", lambda: connected[0])

    async def follow() -> None:
        going = asyncio.create_task(ahead.run())
        await asyncio.sleep(0.03)
        assert service.called == [], "nobody is there to be told"
        connected[0] = True
        for wanted in (1, 2):
            async with asyncio.timeout(10):
                while len(service.called) < wanted:
                    await asyncio.sleep(0.005)
            queue[:] = [("b", {"1": WRITE}), ("c", {"1": ASK})]
        await asyncio.sleep(0.03)
        going.cancel()

    asyncio.run(follow())
    assert service.called == ["/wake_up?model=mine", "/wake_up?model=acme@3"]
