"""Whatever happens to a request inside the engine, it is answered, and it does not count as running for ever."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from comfyloop.errors import EngineUnavailable, InvalidInput
from comfyloop.serve.embedded.app import create_app
from comfyloop.serve.embedded.jobs import Failed, JobSampling
from tests.unit.serve.embedded.test_embedded_batch import about, picture


def post(client: Any, body: dict[str, Any]) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(client.engine), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
            return await asyncio.wait_for(http.post("/v1/chat/completions", json=body), 60)

    return asyncio.run(send())


def chat(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": "base",
        "messages": [{"role": "user", "content": list(parts)}],
        "temperature": 0,
        "max_tokens": 4,
        **more,
    }


IMAGE = {"type": "image_url", "image_url": {"url": picture("red")}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_beside_the_models_own_image_tag_is_answered(vision_engine: Any, stream: bool) -> None:
    text = {"type": "text", "text": "Which HTML tag is like <image>?"}
    answer = post(vision_engine, chat(IMAGE, text, stream=stream))
    assert answer.status_code == 200 and ("[DONE]" in answer.text) == stream
    assert vision_engine.engine.load == {"running": 0, "waiting": 0}


@pytest.mark.parametrize("error", [StopIteration(), KeyError("x"), AssertionError(), MemoryError()])
@pytest.mark.parametrize("stream", [False, True])
def test_any_exception_while_a_prompt_is_made_is_an_answer(
    text_engine: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, stream: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(text_engine.engine.prompts, "make", fail)
    answer = post(text_engine, chat({"type": "text", "text": "hi"}, stream=stream))
    assert answer.status_code == 500
    assert "The engine failed on this request" in answer.json()["error"]["message"]


@pytest.mark.parametrize("where", ["admit", "prefill"])
@pytest.mark.parametrize("error", [StopIteration(), KeyError("x"), AssertionError()])
def test_a_prompt_that_the_model_breaks_on_fails_alone(
    vision_engine: Any, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    """Others that run beside it are answered as ever."""
    decoder = vision_engine.engine._decoder
    own = getattr(decoder, where)

    def odd(sequence: Any) -> Any:
        if len(sequence.prompt.images) == 2:
            raise error
        return own(sequence)

    expected = vision_engine.ask(about("and this?", "red"))
    monkeypatch.setattr(decoder, where, odd)
    asked = [
        vision_engine.send(about("and this?", *colours)) for colours in (["red"], ["red", "blue"], ["red"])
    ]
    assert asked[0].result()[1] == expected
    with pytest.raises(InvalidInput, match="The model cannot read this prompt"):
        asked[1].result()
    assert asked[2].result()[1] == expected
    assert vision_engine.engine.load == {"running": 0, "waiting": 0}


def test_what_is_sent_while_the_engine_ends_is_answered(
    start_engine: Callable[..., Any], tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model thread breaks; a request that is in its inbox by then fails with a sentence, it does not wait."""
    client = start_engine(tiny_llm)
    engine = client.engine
    prompt = engine.prompts.make(about("hi"), add_generation_prompt=True, continue_final_message=False)
    sent = threading.Event()

    def breaks(*_: Any) -> None:
        sent.wait(20)
        raise RuntimeError("the step broke")

    monkeypatch.setattr(engine._decoder, "step", breaks)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.submit("base", prompt, JobSampling(max_tokens=4), events.put)
    while engine.load["running"] == 0:
        pass
    engine.submit("base", prompt, JobSampling(max_tokens=4), events.put)
    sent.set()
    ends = [event for event in (events.get(timeout=20) for _ in range(3)) if isinstance(event, Failed)]
    assert len(ends) == 2 and all("the step broke" in str(event.error) for event in ends)
    assert engine.load == {"running": 0, "waiting": 0}
    with pytest.raises(EngineUnavailable):
        engine.submit("base", prompt, JobSampling(max_tokens=4), events.put)


def test_a_stream_whose_client_left_before_it_began_does_not_run(text_engine: Any) -> None:
    """As uvicorn tells it: the client is gone when the answer would begin."""
    body = chat({"type": "text", "text": "0 1 2 3"}, stream=True, max_tokens=400)
    app = create_app(text_engine.engine)

    async def go() -> None:
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        ]

        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            await asyncio.sleep(0)

        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
            "query_string": b"", "headers": [(b"content-type", b"application/json")], "scheme": "http",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "",
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 30)

    asyncio.run(go())
    for _ in range(200):
        if text_engine.engine.load == {"running": 0, "waiting": 0}:
            break
        threading.Event().wait(0.01)
    assert text_engine.engine.load == {"running": 0, "waiting": 0}
