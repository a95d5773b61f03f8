"""An engine that takes adapters at its start only: another version is another process, and nobody notices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from comfyloop.errors import Conflict, EngineUnavailable, InvalidInput, ModelError
from comfyloop.serve.engines.blue_green import BlueGreenEngine
from comfyloop.serve.engines.protocol import EngineState, Launch
from comfyloop.settings import Settings
from comfyloop.store import Store
from tests.unit.serve.gateway import INSTANT, Gateway, running_gateway
from tests.unit.serve.test_serve_router import eventually


def fixed(port_file: Path, adapters: Mapping[str, str]) -> Launch:
    modules = [f"{name}={path}" for name, path in adapters.items()]
    argv = [sys.executable, str(INSTANT), "--port-file", str(port_file), "--word-seconds", "0.02"]
    return Launch([*argv, "--lora-modules", *modules])


def pids(gateway: Gateway) -> set[int]:
    """Engine processes that this test's gateway has running."""
    here = str(gateway.services.settings.home)
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if any(here in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def make(settings: Settings, **wanted: str) -> BlueGreenEngine:
    return BlueGreenEngine("engine", settings.home / "engines", fixed, wanted=lambda: wanted)


@pytest.fixture
def gateway(settings: Settings) -> Iterator[Gateway]:
    with running_gateway(settings, make=lambda store: make(settings)) as running:
        yield running


def test_traffic_moves_to_a_new_process_and_the_old_one_ends_after_its_last_request(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.add_version(2)
    router = gateway.services.router
    router.promote("acme", 1)
    eventually(lambda: len(pids(gateway)) == 1)
    first = pids(gateway)
    words: list[str] = []

    def ask() -> None:
        body = {"model": "acme", "messages": [{"role": "user", "content": "say 150 words"}]}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=30)
        words.extend(answer.json()["choices"][0]["message"]["content"].split())

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: ("acme", 1, 1) in router.loaded())
    router.promote("acme", 2)
    assert gateway.said(max_tokens=1) == "acme-v2"  # while the other is still being answered
    assert asking.is_alive() and first < pids(gateway)
    asking.join()
    assert words == ["acme-v1"] * 150
    eventually(lambda: first.isdisjoint(pids(gateway)) and len(pids(gateway)) == 1)
    assert router.rollback("acme").number == 1
    assert gateway.said(max_tokens=1) == "acme-v1"


def test_both_sides_of_a_gate_are_answered_by_one_process(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.add_version(2)
    router = gateway.services.router
    router.promote("acme", 1)
    with router.holding("acme", 2) as new, router.holding("acme", 1) as old:
        assert new.client is old.client
        eventually(lambda: len(pids(gateway)) == 1)
        started = gateway.engine.starts
        router.promote("acme", 2)  # it is loaded: nothing more to start
        assert gateway.engine.starts == started


def test_a_process_that_does_not_start_leaves_the_old_one_serving(gateway: Gateway) -> None:
    gateway.add_version(1)
    path = gateway.add_version(2)
    gateway.services.router.promote("acme", 1)
    (path / "adapter_config.json").unlink()
    started = time.monotonic()
    with pytest.raises(ModelError, match="is not a PEFT directory"):
        gateway.services.router.promote("acme", 2)
    assert time.monotonic() - started < 15
    assert gateway.said(max_tokens=1) == "acme-v1"
    eventually(lambda: len(pids(gateway)) == 1)


def test_a_crashed_process_comes_back_with_its_adapters(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.services.router.promote("acme", 1)
    eventually(lambda: len(pids(gateway)) == 1)
    os.kill(pids(gateway).pop(), signal.SIGKILL)
    eventually(lambda: gateway.engine.state is not EngineState.READY)
    assert gateway.ask().status_code == 503
    gateway.engine.wait_ready(30)
    assert gateway.said(max_tokens=1) == "acme-v1"
    assert gateway.http.get("/readyz").status_code == 200


def test_the_first_process_starts_with_the_live_versions(settings: Settings) -> None:
    path = settings.home / "adapter"
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"r": 8}))

    def alive(store: Store) -> BlueGreenEngine:
        return make(settings, **{"acme-v1": str(path)})

    with running_gateway(settings, make=alive) as gateway:
        gateway.add_version(1, path)
        gateway.services.router.promote("acme", 1)
        assert gateway.engine.starts == 1
        assert gateway.said(max_tokens=1) == "acme-v1"


def test_what_the_engine_cannot_take_is_refused_before_a_process_is_started(settings: Settings) -> None:
    def refuse(name: str, path: str) -> None:
        raise InvalidInput(f"{name} has rank 512.")

    engine = BlueGreenEngine("engine", settings.home / "engines", fixed, check=refuse)
    with pytest.raises(EngineUnavailable):
        engine.load("acme-v1", "somewhere")
    engine.start()
    try:
        engine.wait_ready(30)
        with pytest.raises(InvalidInput, match="rank 512"):
            engine.load("acme-v1", "somewhere")
        assert engine.starts == 1
    finally:
        engine.stop()


def test_an_engine_that_scores_nothing_says_so_and_is_not_waited_for(gateway: Gateway) -> None:
    with pytest.raises(Conflict, match=r"cannot judge a candidate.* promote versions by hand"):
        gateway.engine.client.scores("base", [{"role": "user", "content": "how are you"}], ["well"])
