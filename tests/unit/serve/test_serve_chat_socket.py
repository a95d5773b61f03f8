"""Chats over a WebSocket: several at a time, cancelled one by one, wrong ones told and the rest unharmed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from comfyloop.settings import Settings
from comfyloop.store import generations
from tests.unit.serve.gateway import Gateway, instant, running_gateway
from tests.unit.serve.test_serve_router import eventually


@pytest.fixture(scope="module")
def slow_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = Settings(home=tmp_path_factory.mktemp("socket"), project="acme", port=0)
    with running_gateway(settings, instant("--word-seconds", 0.02)) as running:
        yield running


@pytest.fixture
def socket(slow_gateway: Gateway) -> Iterator[ClientConnection]:
    url = slow_gateway.url.replace("http", "ws") + "/v1/chat/completions"
    with connect(url, close_timeout=2) as connection:
        yield connection


def ask(socket: ClientConnection, request_id: str, text: str = "hi", **fields: Any) -> None:
    messages = [{"role": "user", "content": text}]
    socket.send(json.dumps({"request_id": request_id, "model": "acme", "messages": messages, **fields}))


def frames(socket: ClientConnection, *request_ids: str) -> dict[str, list[dict[str, Any]]]:
    """All frames until each of the requests has ended."""
    found: dict[str, list[dict[str, Any]]] = {request_id: [] for request_id in request_ids}
    while any(not f or f[-1]["type"] not in ("done", "cancelled", "error") for f in found.values()):
        frame = json.loads(socket.recv(timeout=20))
        found[frame["request_id"]].append(frame)
    return found


def text_of(frames: list[dict[str, Any]]) -> str:
    chunks = [frame["chunk"] for frame in frames if frame["type"] == "chunk"]
    return "".join(choice["delta"].get("content") or "" for c in chunks for choice in c["choices"])


def test_an_answer_comes_in_frames_and_is_recorded(slow_gateway: Gateway, socket: ClientConnection) -> None:
    ask(socket, "a", "say 3 words")
    told = frames(socket, "a")["a"]
    assert [told[0]["type"], told[-1]["type"]] == ["start", "done"]
    assert text_of(told) == "base base base"
    assert told[0]["version"] == "acme@base"
    with slow_gateway.store.read() as conn:
        generation = generations.get(conn, told[0]["generation"])
    assert (generation.answer, generation.finish_reason) == ("base base base", "stop")


def test_requests_of_one_connection_are_answered_together(socket: ClientConnection) -> None:
    ask(socket, "long", "say 40 words")
    ask(socket, "short", "say 2 words")
    order = []
    while "long" not in order:
        frame = json.loads(socket.recv(timeout=20))
        if frame["type"] == "done":
            order.append(frame["request_id"])
    assert order == ["short", "long"]


def test_one_is_cancelled_and_the_other_is_not(slow_gateway: Gateway, socket: ClientConnection) -> None:
    ask(socket, "stay", "say 15 words")
    ask(socket, "leave", "say 200 words", max_tokens=400)
    while json.loads(socket.recv(timeout=20)).get("request_id") != "leave":
        pass
    socket.send(json.dumps({"request_id": "leave", "cancel": True}))
    told = frames(socket, "stay", "leave")
    assert [told["leave"][-1]["type"], told["stay"][-1]["type"]] == ["cancelled", "done"]
    eventually(lambda: slow_gateway.services.router.loaded() == [("acme", 0, 0)])
    socket.send(json.dumps({"request_id": "nobody", "cancel": True}))  # is nothing
    ask(socket, "leave", "say 1 words")  # its id is free again
    assert frames(socket, "leave")["leave"][-1]["type"] == "done"


@pytest.mark.parametrize(
    ("message", "code", "sentence"),
    [
        ("{", "invalid_input", "not valid JSON"),
        ("[1]", "invalid_input", "JSON object"),
        ("[" * 100_000, "invalid_input", "not valid JSON"),
        (json.dumps({"model": "acme"}), "invalid_input", "request_id"),
        (json.dumps({"request_id": "x", "model": "acme"}), "invalid_input", "messages"),
        (json.dumps({"request_id": "x", "model": "acme", "messages": [], "odd": 1}), "invalid_input", "odd"),
        (json.dumps({"request_id": "x" * 200, "cancel": True}), "invalid_input", "request_id"),
        ('{"request_id": "x", "model": "acme", "user": "\\ud800"}', "invalid_input", "surrogate"),
    ],
)
def test_what_is_wrong_is_told_and_the_connection_stays(
    socket: ClientConnection, message: str, code: str, sentence: str
) -> None:
    socket.send(message)
    frame = json.loads(socket.recv(timeout=20))
    assert frame["type"] == "error" and frame["error"]["code"] == code
    assert sentence in frame["error"]["message"]
    ask(socket, "after", "say 1 words")
    assert frames(socket, "after")["after"][-1]["type"] == "done"


def test_an_unknown_model_and_an_id_in_use_are_errors_of_their_request(socket: ClientConnection) -> None:
    ask(socket, "x", model="nobody")
    assert frames(socket, "x")["x"][-1]["error"]["code"] == "not_found"
    ask(socket, "twice", "say 20 words")
    ask(socket, "twice", "say 20 words")
    told = []
    while not told or told[-1]["type"] != "done":
        told.append(json.loads(socket.recv(timeout=20)))
    assert [f["error"]["code"] for f in told if f["type"] == "error"] == ["conflict"]


def test_who_leaves_frees_every_version(slow_gateway: Gateway) -> None:
    url = slow_gateway.url.replace("http", "ws") + "/v1/chat/completions"
    with connect(url) as connection:
        for number in range(4):
            ask(connection, str(number), "say 200 words", max_tokens=400)
        connection.recv(timeout=20)
    eventually(lambda: slow_gateway.services.router.loaded() == [("acme", 0, 0)])
    assert slow_gateway.services.router.traffic.quiet_seconds() >= 0


def test_a_token_is_asked_for(tmp_path: Any) -> None:
    settings = Settings(home=tmp_path / "home", project="acme", port=0, token="secret")
    with running_gateway(settings, instant()) as gateway:
        url = gateway.url.replace("http", "ws") + "/v1/chat/completions"
        with pytest.raises(Exception, match=r"403|4401"):
            connect(url)
        with connect(f"{url}?token=secret") as connection:
            ask(connection, "a", "say 1 words")
            assert frames(connection, "a")["a"][-1]["type"] == "done"
