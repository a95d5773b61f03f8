"""Both Python clients against a service: the same answers, the same errors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

import comfyloop
from comfyloop.errors import EngineUnavailable, NotFound
from comfyloop.records import AnswerEdited, LoopState
from tests.unit.serve.gateway import Gateway


class Either:
    """One of the clients, its calls made at once."""

    def __init__(self, kind: type[comfyloop.Client] | type[comfyloop.AsyncClient], url: str) -> None:
        self._runner = asyncio.Runner()
        self._client = kind(url, project="acme")

    def __call__(self, name: str, *given: Any, **named: Any) -> Any:
        made = getattr(self._client, name)(*given, **named)
        if inspect.iscoroutine(made):
            return self._runner.run(made)
        return self._runner.run(_listed(made)) if inspect.isasyncgen(made) else made

    def close(self) -> None:
        self("aclose" if isinstance(self._client, comfyloop.AsyncClient) else "close")
        self._runner.close()


async def _listed(made: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in made]


def test_the_service_is_found_by_its_address_however_it_is_written(gateway: Gateway) -> None:
    """With /v1, as OpenAI's clients have it, and as a browser's bar shows it."""
    plain = gateway.url.removeprefix("http://")
    for url in (f"{gateway.url}/v1", f"{gateway.url}/v1/", f"{gateway.url}/", plain, f" {plain}/v1 "):
        with comfyloop.Client(url, project="acme") as client:
            assert client.url == gateway.url and client.ready()


@pytest.mark.parametrize("kind", [comfyloop.Client, comfyloop.AsyncClient])
def test_both_ask_correct_list_and_say_what_is_wrong(gateway: Gateway, kind: type[comfyloop.Client]) -> None:
    client = Either(kind, gateway.url)
    assert client("ready") is True
    assert client("loop").state is LoopState.IDLE
    answer = client("ask", "hi")
    assert client("generation", answer.generation).answer == answer.text
    edits = [
        AnswerEdited(project="acme", generation=answer.generation, edited=f"Hello {n}!") for n in range(5)
    ]
    assert client("send_feedback", edits)["stored"] == [edit.id for edit in edits]
    assert [item["id"] for item in client("pages", "/v1/feedback", limit=2)] == [edit.id for edit in edits]
    for _ in range(2):
        client("ask", "again")
    assert len(list(client("pages", "/v1/generations", limit=2))) == 3
    gateway.add_version(1)
    assert [version.number for version in client("versions")[1]] == [1]
    with pytest.raises(NotFound, match="judged") as told:
        client("gate_report", 1)
    assert told.value.message and told.value.hint not in told.value.message
    client.close()


@pytest.mark.parametrize("kind", [comfyloop.Client, comfyloop.AsyncClient])
def test_a_service_that_does_not_answer_is_said_to_be_away(kind: type[comfyloop.Client]) -> None:
    client = Either(kind, "http://127.0.0.1:1")
    assert client("ready") is False
    with pytest.raises(EngineUnavailable, match="No service answers at") as told:
        client("loop")
    assert told.value.hint == "Start it with `comfyloop up`, or give its --url."
    assert type(told.value.__cause__).__name__ == "ConnectError"
    client.close()
