"""Engines sleep under nobody and are woken before they are asked. The engine here does as vLLM does: what it is asked
while it sleeps it never answers, and it dies when it is put to sleep under a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from comfyloop import web
from comfyloop.client.client import Client
from comfyloop.errors import EngineUnavailable
from comfyloop.records import Run, new_id
from comfyloop.serve.api import busy
from comfyloop.serve.engines import process as engines
from comfyloop.serve.engines.kinds import KINDS, Start
from comfyloop.serve.engines.sleeper import Sleeper
from comfyloop.settings import Settings
from comfyloop.store import runs
from comfyloop.train.run.directory import RunDirectory, Status
from tests.unit.serve.gateway import Gateway, instant, running_gateway
from tests.unit.serve.test_serve_router import eventually


@pytest.fixture
def gateway(settings: Settings) -> Iterator[Gateway]:
    with running_gateway(
        settings, instant("--sleeps", "--word-seconds", 0.002), front=web.install
    ) as running:
        yield running


def sleeper_of(gateway: Gateway) -> Sleeper:
    sleeper: Sleeper = gateway.engine.client.sleeper
    return sleeper


def test_it_sleeps_when_told_and_the_first_question_wakes_it(gateway: Gateway) -> None:
    told = gateway.http.get("/is_sleeping").json()
    assert told["is_sleeping"] is False and told["engines"]["starter"]["can_sleep"] is True
    assert gateway.http.post("/sleep", params={"level": 1}).json()["is_sleeping"] is True
    assert gateway.http.get("/is_sleeping", params={"model": "acme"}).json()["is_sleeping"] is True
    assert gateway.http.get("/readyz").json()["sleeping"] == ["starter"]
    assert "comfyloop_engine_sleeping{" in gateway.http.get("/metrics").text
    with Client(gateway.url, project="acme") as client:
        assert client.is_sleeping()["is_sleeping"] is True
    page = {"Accept": "text/html", "Accept-Language": "en"}
    assert "The model sleeps, so that its memory is free." in gateway.http.get("/", headers=page).text
    assert "asleep" in gateway.http.get("/settings/health", headers=page).text
    assert gateway.said(max_tokens=2) == "base base"
    assert "The model sleeps" not in gateway.http.get("/", headers=page).text
    assert "Waking took 0." in gateway.http.get("/settings/health", headers=page).text
    rest = gateway.http.get("/is_sleeping").json()["engines"]["starter"]
    assert rest["wakes"] == 1 and rest["wake_seconds"] > 0 and rest["is_sleeping"] is False
    metrics = gateway.http.get("/metrics").text
    assert 'comfyloop_engine_wakes_total{engine="starter"} 1.0' in metrics
    assert 'comfyloop_engine_wake_seconds{engine="starter"}' in metrics
    gateway.http.post("/sleep")
    assert gateway.http.post("/wake_up", params={"model": "acme@base"}).json()["is_sleeping"] is False
    assert gateway.http.post("/sleep", params={"model": "nobody"}).status_code == 404
    assert gateway.http.post("/sleep", params={"level": 3}).status_code in (400, 422)


def test_streamed_answers_wake_it_and_keep_it_awake(gateway: Gateway) -> None:
    gateway.http.post("/sleep")
    body = {"model": "acme", "messages": [{"role": "user", "content": "say 40 words"}], "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert sleeper_of(gateway)._lie_down(1, 0.0) is False, "somebody is being answered"
        assert [line for line in lines if line][-1] == "data: [DONE]"
    eventually(lambda: sleeper_of(gateway)._users == 0)


def test_no_request_is_lost_however_often_it_falls_asleep(gateway: Gateway) -> None:
    sleeper, over = sleeper_of(gateway), threading.Event()
    sleeper.after = 0.003

    def lull() -> None:
        while not over.wait(0.001):
            sleeper.sleep_when_quiet()

    def ask(number: int) -> str:
        time.sleep(0.004 * (number % 7))
        return gateway.said(max_tokens=1 + number % 3)

    lulling = threading.Thread(target=lull)
    lulling.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(60)))
    finally:
        over.set()
        lulling.join()
    assert [len(answer.split()) for answer in answers] == [1 + n % 3 for n in range(60)]
    assert sleeper.wakes > 1
    assert gateway.engine.starts == 1


def test_many_who_come_at_once_wake_it_once(settings: Settings) -> None:
    with running_gateway(settings, instant("--sleeps", "--asleep", "--wake-seconds", 0.2)) as gateway:
        gateway.http.post("/sleep")
        wakes = sleeper_of(gateway).wakes
        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(lambda _: gateway.said(max_tokens=1), range(12))) == {"base"}
        assert sleeper_of(gateway).wakes == wakes + 1
        assert (sleeper_of(gateway).wake_seconds or 0) >= 0.2


def test_versions_are_swapped_while_it_sleeps(gateway: Gateway) -> None:
    gateway.add_version(1)
    gateway.add_version(2)
    router = gateway.services.router
    for number in (1, 2):
        gateway.http.post("/sleep")
        router.promote("acme", number, drain_seconds=5)
        assert gateway.said(max_tokens=1) == f"acme-v{number}"
    gateway.http.post("/sleep")
    router.rollback("acme")
    assert gateway.said(max_tokens=1) == "acme-v1"


def test_who_lacks_memory_is_made_room_for(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "QUIET_SECONDS", 0.0)
    lacking = {"who": "comfyui", "seconds": 5, "memory_bytes": 2**30}
    told = gateway.http.post("/v1/busy", json=lacking).json()
    assert told == {"busy": ["comfyui"], "memory_bytes": 2**30, "run_memory_bytes": 0}
    assert not sleeper_of(gateway).is_sleeping, "nobody has allowed this engine to sleep"
    sleeper_of(gateway).after = 600.0
    gateway.http.post("/v1/busy", json=lacking)
    eventually(lambda: sleeper_of(gateway).is_sleeping)
    run_dir = gateway.services.settings.home / "runs" / "1"
    RunDirectory(run_dir).path.mkdir(parents=True)
    RunDirectory(run_dir).write_status(Status(memory_bytes=3 * 2**30))
    with gateway.store.begin() as conn:
        runs.add(conn, Run(id=new_id("run"), project="acme", path=str(run_dir), snapshot="s", recipe="sft"))
    assert gateway.http.get("/v1/busy").json()["run_memory_bytes"] == 3 * 2**30


def test_one_that_cannot_says_so(settings: Settings) -> None:
    with running_gateway(settings, instant()) as gateway:
        refused = gateway.http.post("/sleep")
        assert refused.status_code == 409 and "cannot sleep" in refused.json()["error"]["message"]
        assert gateway.http.post("/wake_up").status_code == 200
        assert gateway.http.get("/is_sleeping").json()["engines"]["starter"]["can_sleep"] is False


def test_it_sleeps_by_itself_after_the_set_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "WATCH_SECONDS", 0.02)

    def make(_: Any) -> engines.EngineProcess:
        return engines.EngineProcess("e", tmp_path, instant("--sleeps"), sleep_after=0.1)

    with running_gateway(settings, make=make) as gateway:
        seen: list[bool] = []
        sleeper = sleeper_of(gateway)
        gateway.engine.on_state = lambda _: seen.append(sleeper.is_sleeping)
        assert gateway.said(max_tokens=1) == "base"
        eventually(lambda: True in seen)
        assert gateway.said(max_tokens=1) == "base"
        assert False in seen[seen.index(True) :], "who follows the events is told"


@pytest.mark.parametrize(("device", "after"), [("cpu", 0.0), ("cuda", 600.0), ("mps", 600.0), ("", 0.0)])
def test_by_itself_it_sleeps_on_accelerators_alone(device: str, after: float, tmp_path: Path) -> None:
    engine = engines.EngineProcess("e", tmp_path, instant(), sleep_after=None)
    assert engine.sleep_after(device) == after
    assert engines.EngineProcess("e", tmp_path, instant(), sleep_after=60.0).sleep_after(device) == 60.0


def told(outcomes: list[Exception | None]) -> Callable[..., None]:
    def act(*_: object) -> None:
        if (problem := outcomes.pop(0) if outcomes else None) is not None:
            raise problem

    return act


def test_a_wake_that_fails_is_told_to_all_who_waited_and_tried_again_by_the_next() -> None:
    began, go_on = threading.Event(), threading.Event()
    wakes: list[int] = []

    def wake() -> None:
        wakes.append(1)
        began.set()
        go_on.wait(5)
        if len(wakes) == 1:
            raise EngineUnavailable("no room")

    sleeper = Sleeper(lambda level: None, wake)
    sleeper.can_sleep = True
    sleeper.sleep()

    def ask() -> str:
        try:
            with sleeper.awake():
                return "answered"
        except EngineUnavailable as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask)
        began.wait(5)
        others = [pool.submit(ask) for _ in range(2)]
        eventually(lambda: sleeper._users == 3)
        go_on.set()
        assert first.result(5) == "no room"
        assert {other.result(5) for other in others} <= {"no room", "answered"}
    assert ask() == "answered"
    assert sleeper._users == 0


def test_an_engine_that_does_not_say_whether_it_sleeps_is_woken_before_it_is_asked() -> None:
    sleeper = Sleeper(told([EngineUnavailable("it did not answer in time")]), told([]))
    sleeper.can_sleep, sleeper.after = True, 1e-9
    with pytest.raises(EngineUnavailable):
        sleeper.sleep_when_quiet()
    assert sleeper.is_sleeping
    with sleeper.awake():
        assert sleeper.wakes == 1


def test_vllm_can_sleep_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    start = Start("/models/base", Path("port"), {}, "python-of-it")
    launch = KINDS["vllm"].launch(Settings(gpu_memory_utilization=0.5), start)
    assert "--enable-sleep-mode" not in launch.argv
    assert "VLLM_SERVER_DEV_MODE" not in (launch.environment or {})
    launch = KINDS["vllm"].launch(Settings(gpu_memory_utilization=0.5, engine_sleep_after=5), start)
    assert "--enable-sleep-mode" in launch.argv
    assert (launch.environment or {})["VLLM_SERVER_DEV_MODE"] == "1"
