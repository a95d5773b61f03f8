"""An engine that sleeps gives its memory back, and answers after waking as it did before, bit for bit."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from comfyloop.errors import Conflict, EngineUnavailable, ModelError
from comfyloop.models import moving
from comfyloop.serve.embedded import engine as engines
from comfyloop.serve.embedded import weights
from comfyloop.serve.embedded.app import create_app
from comfyloop.serve.embedded.engine import EmbeddedEngine
from comfyloop.serve.embedded.options import EngineOptions
from tests.families import make_family
from tests.unit.serve.embedded.conftest import Client

QUESTION = "What is red and runs?"

Start = Callable[..., Client]


def held_bytes(client: Client) -> int:
    model = client.engine.loaded.model
    return sum(tensor.nbytes for tensor in weights.held(model) if tensor.device.type != "meta")


def sleeps(client: Client) -> bool:
    return client.engine.is_sleeping


def told(client: Client, model: str = "base") -> tuple[list[int], list[Any]]:
    """Tokens and all that is said of their likelihood."""
    asked = client.send(QUESTION, model, logprobs=3, max_tokens=12)
    tokens, _, _ = asked.result()
    return tokens, [piece.logprobs for piece in asked.pieces]


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights wait in the processor's memory, as those of a card do; here from that memory to itself."""
    monkeypatch.setattr(weights, "OWN_MEMORY", ("cpu",))
    monkeypatch.setattr(moving, "OWN_MEMORY", ("cpu",))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_the_same_after_waking(
    start_engine: Start, tiny_llm: Path, adapters: list[Path], dtype: str
) -> None:
    client = start_engine(tiny_llm, dtype=dtype)
    client.load("a", adapters[0])
    before = [told(client), told(client, "a")]
    client.engine.sleep()
    assert sleeps(client)
    assert held_bytes(client) == 0
    assert [told(client), told(client, "a")] == before, "a question wakes it"
    assert not sleeps(client)
    assert client.engine.wake_seconds is not None
    assert held_bytes(client) > 0
    metrics = client.engine.metrics.text(0, 0, 0).decode()
    assert "comfyloop_engine_wake_seconds_count 1.0" in metrics
    assert "comfyloop_engine_sleeping 0.0" in metrics


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize("quant_method", ["", "bnb"])
def test_what_waits_in_the_processors_memory_comes_back_as_it_was(
    start_engine: Start, tiny_llm: Path, adapters: list[Path], quant_method: str
) -> None:
    if quant_method:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    client = start_engine(tiny_llm, quant_method=quant_method)
    client.load("a", adapters[0])
    before = [told(client), told(client, "a")]
    whole = held_bytes(client)
    for _ in range(2):
        client.engine.sleep()
        assert held_bytes(client) == whole
        assert [told(client), told(client, "a")] == before


def test_in_four_bits_it_is_read_anew(start_engine: Start, tiny_llm: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    client = start_engine(tiny_llm, quant_method="bnb")
    before = told(client)
    client.engine.sleep(2)
    assert held_bytes(client) == 0
    assert told(client) == before


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_models_that_see_do_so_after_waking(start_engine: Start, tmp_path: Path, family: str) -> None:
    client = start_engine(make_family(family, tmp_path / family))
    before = told(client)
    client.engine.sleep()
    assert told(client) == before


def test_requests_that_come_while_it_falls_asleep_are_answered(start_engine: Start, tiny_llm: Path) -> None:
    client = start_engine(tiny_llm)
    expected = client.tokens(QUESTION)
    for _ in range(5):
        sleeper = threading.Thread(target=client.engine.sleep)
        first = client.send(QUESTION)
        sleeper.start()
        asked = [first, *(client.send(QUESTION) for _ in range(4))]
        assert [one.result()[0] for one in asked] == [expected] * 5
        sleeper.join(30)
        assert not sleeper.is_alive()


def test_adapters_come_and_go_while_it_sleeps(
    start_engine: Start, tiny_llm: Path, adapters: list[Path]
) -> None:
    client = start_engine(tiny_llm)
    client.load("a", adapters[0])
    a = told(client, "a")
    client.engine.sleep()
    client.engine.remove_adapter("a")
    assert sleeps(client), "to forget needs no weights"
    client.load("b", adapters[1])
    assert not sleeps(client)
    b = told(client, "b")
    client.engine.sleep()
    client.load("a", adapters[0])
    assert told(client, "a") == a
    assert told(client, "b") == b


def test_weights_that_were_changed_meanwhile_are_not_taken_for_the_old_ones(
    tiny_llm: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llm, tmp_path / "model")
    engine = EmbeddedEngine(EngineOptions(model=str(model), threads=1, dtype="float32"))
    engine.start()
    assert engine.ready.wait(60)
    engine.sleep()
    file = model / "model.safetensors"
    os.utime(file, ns=(0, 0))
    with pytest.raises(ModelError, match="have changed while the engine slept"):
        Client(engine).ask(QUESTION)
    engine.join(10)
    assert engine.error is not None, "the service starts it anew"


def test_without_room_it_sleeps_on_and_says_so(
    start_engine: Start, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start_engine(tiny_llm)
    before = told(client)
    client.engine.sleep()
    monkeypatch.setattr(engines, "ROOM_SECONDS", 0.0)

    def no_room(_: weights.Weights) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as full:
        full.setattr(weights.Weights, "take_again", no_room)
        with pytest.raises(EngineUnavailable, match="no room in the memory for it to wake"):
            client.ask(QUESTION)
        assert sleeps(client)
    assert told(client) == before


def test_a_move_that_fails_in_the_middle_leaves_all_as_it_was(
    start_engine: Start, tiny_llm: Path, as_on_a_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start_engine(tiny_llm)
    before = told(client)
    whole = moving._room
    left: Iterator[int] = iter(range(3))

    def some_room(*place: Any) -> torch.Tensor:
        if next(left, 0) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(*place)

    with monkeypatch.context() as full:
        full.setattr(moving, "_room", some_room)
        with pytest.raises(Conflict, match="It stays awake"):
            client.engine.sleep()
    assert not sleeps(client)
    assert told(client) == before


@pytest.fixture
def http(start_engine: Start, tiny_llm: Path) -> Iterator[TestClient]:
    with TestClient(create_app(start_engine(tiny_llm).engine)) as client:
        yield client


def test_the_routes_are_vllms(http: TestClient) -> None:
    assert http.get("/is_sleeping").json()["is_sleeping"] is False
    assert http.post("/sleep?level=1").status_code == 200
    assert http.get("/is_sleeping").json()["is_sleeping"] is True
    assert http.get("/health").status_code == 200
    assert http.post("/wake_up").status_code == 200
    told = http.get("/is_sleeping").json()
    assert told["is_sleeping"] is False and told["device"] == "cpu" and told["wake_seconds"] > 0
    assert http.post("/sleep?level=2").status_code == 200
    body = {"model": "base", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert http.get("/is_sleeping").json()["is_sleeping"] is False
    assert http.post("/sleep?level=3").status_code == 400
