"""Versions while requests run: leases, room for adapters, promote, roll back, an engine that dies."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.client.client import Client
from comfyloop.errors import ComfyLoopError, Conflict, EngineUnavailable, InvalidInput, NotFound, QueueFull
from comfyloop.records import VersionState
from comfyloop.serve.engines import process as engines
from comfyloop.serve.engines.process import EngineProcess
from comfyloop.serve.engines.protocol import EngineState
from comfyloop.serve.routing import loaded_versions
from comfyloop.serve.routing.names import ModelName, version_name
from comfyloop.settings import Settings
from comfyloop.store import projects, versions
from tests.unit.serve.gateway import Gateway, instant, running_gateway


def in_engine(gateway: Gateway) -> set[str]:
    return set(gateway.engine.client.models()) - {"base"}


def eventually(check, seconds: float = 5.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True), st.integers(min_value=0, max_value=10**8))
def test_a_versions_name_means_that_version(project: str, number: int) -> None:
    assert ModelName.parse(version_name(project, number)) == ModelName(project, number)
    assert ModelName.parse(project) == ModelName.parse(f"{project}@live") == ModelName(project, "live")


@given(st.text(max_size=30).filter(lambda text: not text.isascii() or "@@" in text or text == ""))
def test_what_is_no_name_is_not_found(text: str) -> None:
    with pytest.raises(NotFound, match="no model"):
        ModelName.parse(text)


def test_promote_loads_warms_flips_and_unloads_the_old_one(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.add_version(2)
    steps: list[str] = []
    router = gateway.services.router
    first = router.promote("acme", 1, progress=steps.append)
    assert (first.previous, first.number, steps[:3]) == (0, 1, ["load", "warm", "flip"])
    assert gateway.said(max_tokens=1) == "acme-v1"
    second = router.promote("acme", 2, drain_seconds=5)
    assert second.previous == 1 and set(second.seconds) == {"load", "warm", "flip", "drain"}
    assert gateway.said(max_tokens=1) == "acme-v2"
    assert in_engine(gateway) == {"acme-v2"}
    assert gateway.said("acme@1", max_tokens=1) == "acme-v1"  # on demand
    assert router.rollback("acme").number == 1
    assert router.rollback("acme").number == 0
    with gateway.store.read() as conn:
        moves = [(move.number, move.rollback) for move in versions.history(conn, "acme")]
    assert moves == [(0, True), (1, True), (2, False), (1, False)]
    assert gateway.said(max_tokens=1) == "base"
    with pytest.raises(Conflict, match="base model"):
        router.rollback("acme")
    with gateway.store.read() as conn:
        assert projects.get(conn, "acme").live == 0
        assert versions.get(conn, "acme", 2).state is VersionState.RETIRED


def test_a_request_ends_on_the_version_it_started_on(settings: Settings) -> None:
    with running_gateway(settings, instant("--word-seconds", 0.03)) as gateway:
        gateway.add_version(1)
        gateway.add_version(2)
        gateway.services.router.promote("acme", 1)
        words: list[str] = []
        body = {"model": "acme", "messages": [{"role": "user", "content": "say 40 words"}]}

        def ask() -> None:
            answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=20)
            words.extend(answer.json()["choices"][0]["message"]["content"].split())

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: ("acme", 1, 1) in gateway.services.router.loaded())
        gateway.services.router.promote("acme", 2)
        assert gateway.said(max_tokens=1) == "acme-v2"
        assert "acme-v1" in in_engine(gateway)  # still in use
        asking.join()
        assert words == ["acme-v1"] * 40
        eventually(lambda: in_engine(gateway) == {"acme-v2"})


def test_what_does_not_load_is_not_promoted(gateway: Gateway) -> None:
    path = gateway.add_version(1)
    (path / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match="not a PEFT directory"):
        gateway.services.router.promote("acme", 1)
    assert gateway.said(max_tokens=1) == "base"
    assert gateway.services.router.problems() == {}


def test_the_flip_and_what_goes_with_it_are_one_transaction(gateway: Gateway) -> None:
    gateway.add_version(1)

    def break_off(conn: object) -> None:
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        gateway.services.router.promote("acme", 1, also=break_off)
    with gateway.store.read() as conn:
        assert projects.get(conn, "acme").live == 0
    assert gateway.said(max_tokens=1) == "base"


def test_what_the_gate_rejected_is_promoted_by_force_only(gateway: Gateway) -> None:
    gateway.add_version(1)
    with gateway.store.begin() as conn:
        versions.set_state(conn, "acme", 1, VersionState.REJECTED)
    refused = gateway.http.post("/v1/versions/1/promote")
    assert refused.status_code == 409 and "rejected" in refused.json()["error"]["message"]
    assert gateway.http.post("/v1/versions/1/promote?force=true").json()["number"] == 1


def test_idle_versions_make_room_and_the_live_one_never_does(settings: Settings) -> None:
    with running_gateway(settings.model_copy(update={"max_loras": 3}), instant()) as gateway:
        for number in range(1, 7):
            gateway.add_version(number)
        gateway.services.router.promote("acme", 1)
        for number in range(2, 7):
            assert gateway.said(f"acme@{number}", max_tokens=1) == f"acme-v{number}"
            assert "acme-v1" in in_engine(gateway)
            assert len(in_engine(gateway)) <= 3
        assert in_engine(gateway) == {"acme-v1", "acme-v5", "acme-v6"}  # the least recently used ones went


def test_no_room_at_all_is_a_busy_with_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_versions, "ROOM_SECONDS", 0.2)
    with running_gateway(settings.model_copy(update={"max_loras": 2}), instant()) as gateway:
        for number in (1, 2, 3, 4):
            gateway.add_version(number)
        router = gateway.services.router
        with (
            router.holding("acme", 1),
            router.holding("acme", 2),
            router.holding("acme", 3),
            pytest.raises(QueueFull, match="max_loras"),
        ):
            router.acquire("acme@4")
        with router.acquire("acme@4") as lease:
            assert lease.name == "acme@4"


def test_many_threads_asking_for_one_version_load_it_once(settings: Settings) -> None:
    with running_gateway(settings, instant("--load-seconds", 0.2)) as gateway:
        gateway.add_version(1)
        leases = []
        threads = [
            threading.Thread(target=lambda: leases.append(gateway.services.router.acquire("acme@1")))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ("acme", 1, 16) in gateway.services.router.loaded()
        for lease in leases:
            lease.release()
        assert ("acme", 1, 0) in gateway.services.router.loaded()


def test_an_engine_that_dies_comes_back_with_the_live_version(settings: Settings) -> None:
    with running_gateway(settings, instant("--start-seconds", 0.5)) as gateway:
        gateway.add_version(1)
        gateway.services.router.promote("acme", 1)
        assert gateway.http.get("/readyz").status_code == 200
        assert gateway.engine.pid is not None
        os.kill(gateway.engine.pid, signal.SIGKILL)
        eventually(lambda: gateway.engine.state is not EngineState.READY)
        refused = gateway.ask()
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "engine" in refused.json()["error"]["message"]
        assert gateway.http.get("/readyz").status_code == 503
        gateway.engine.wait_ready(20)
        assert in_engine(gateway) == {"acme-v1"}  # loaded before it counted as ready
        assert gateway.http.get("/readyz").json()["problems"] == {}
        assert gateway.said(max_tokens=1) == "acme-v1"
        assert gateway.engine.starts == 2


def test_one_live_version_that_is_gone_keeps_its_project_alone_from_being_ready(settings: Settings) -> None:
    with running_gateway(settings, instant()) as gateway:
        path = gateway.add_version(1)
        gateway.services.router.promote("acme", 1)
        gateway.http.post("/v1/projects", json={"name": "other"}).raise_for_status()
        (path / "adapter_config.json").unlink()
        assert gateway.engine.pid is not None
        os.kill(gateway.engine.pid, signal.SIGKILL)
        eventually(lambda: gateway.engine.starts == 2)
        gateway.engine.wait_ready(20)
        ready = gateway.http.get("/readyz")
        assert ready.status_code == 503 and set(ready.json()["problems"]) == {"acme"}
        with Client(str(gateway.http.base_url)) as client, pytest.raises(ComfyLoopError) as told:
            client.call("GET", "/readyz")
        assert told.value.message == ready.json()["problems"]["acme"]
        assert gateway.said("other", max_tokens=1) == "base"
        assert gateway.ask().status_code == 400  # the engine's own sentence
        assert gateway.said("acme@base", max_tokens=1) == "base"


def test_an_engine_by_url_that_lost_its_adapters_gets_them_again(settings: Settings) -> None:
    """Restarted so quickly that the watcher saw nothing: the first answer of 404 tells."""
    with running_gateway(settings, instant()) as first:
        url = first.engine.url
        with running_gateway(settings.model_copy(update={"home": settings.home / "two"}), url=url) as gateway:
            gateway.add_version(1)
            gateway.services.router.promote("acme", 1)
            first.engine.client.unload("acme-v1")
            assert gateway.said(max_tokens=1) == "acme-v1"
            first.engine.client.unload("acme-v1")
            body = {"model": "acme", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            assert '"acme-v1"' in gateway.http.post("/v1/chat/completions", json=body).text


def test_an_engine_by_url_calls_its_base_model_as_it_likes(settings: Settings) -> None:
    with running_gateway(settings, instant("--served-model-name", "llava-7b"), wait=False) as first:
        first.engine.wait_ready(20)
        there = settings.model_copy(update={"home": settings.home / "two"})
        with running_gateway(there, url=first.engine.url) as gateway:
            assert gateway.said(max_tokens=1) == "llava-7b"
            gateway.add_version(1)
            gateway.services.router.promote("acme", 1, drain_seconds=0)
            assert gateway.said(max_tokens=1) == "acme-v1"
            assert gateway.services.router.rollback("acme").number == 0
            assert gateway.said(max_tokens=1) == "llava-7b"


def test_an_engine_by_url_without_routes_for_adapters_serves_what_it_was_started_with(
    settings: Settings,
) -> None:
    path = settings.home / "adapter"
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    with running_gateway(settings, instant("--lora-modules", f"acme-v1={path}")) as first:
        there = settings.model_copy(update={"home": settings.home / "two"})
        with running_gateway(there, url=first.engine.url) as gateway:
            gateway.add_version(1, path)
            gateway.add_version(2, path)
            gateway.services.router.promote("acme", 1)
            assert gateway.said(max_tokens=1) == "acme-v1"
            with pytest.raises(InvalidInput, match="ALLOW_RUNTIME_LORA_UPDATING"):
                gateway.services.router.promote("acme", 2)
            assert gateway.said(max_tokens=1) == "acme-v1"


def test_an_engine_that_cannot_start_says_why(settings: Settings) -> None:
    engine = EngineProcess("engine", settings.home / "engines", instant("--exit-code", 8))
    engine.start()
    with pytest.raises(EngineUnavailable, match="no tokenizer"):
        engine.wait_ready(20)
    assert engine.state is EngineState.FAILED
    engine.stop()


def test_an_engine_that_crashes_at_the_start_is_tried_again_after_longer_pauses(settings: Settings) -> None:
    engine = EngineProcess("engine", settings.home / "engines", instant("--exit-code", 1))
    engine.start()
    eventually(lambda: engine.starts >= 2)
    assert engine.state in (EngineState.RESTARTING, EngineState.STARTING)
    assert "restarted" in str(engine.unavailable())
    engine.stop()
    assert engine.state is EngineState.STOPPED


def test_an_engine_that_never_comes_up_is_given_up_with_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was started again for ever, and nothing said why."""
    monkeypatch.setattr(engines, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(engines, "FIRST_STARTS", 3)
    engine = EngineProcess("engine", settings.home / "engines", instant("--exit-code", 1))
    engine.start()
    told: list[str] = []
    with pytest.raises(
        EngineUnavailable, match=r"cannot be started: It ended 3 times .* \(exit code 1; log: "
    ):
        engine.wait_ready(60, told.append)
    assert engine.starts == 3
    assert "The engine engine is started again: " in caplog.text
    engine.stop()


def test_stopping_leaves_no_process(gateway: Gateway) -> None:
    pid = gateway.engine.pid
    assert pid is not None
    gateway.engine.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
