"""ComfyUI and training have the card in turns: who lacks memory says so, and nobody unloads in the middle of work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from comfyui.busy import ActivityReporter
from comfyui.config import Config, ConfigFile
from comfyui.freeing import Unloader
from comfyui.service import ServiceError

GIB = 2**30


class Calls:
    """The service as the pack calls it."""

    def __init__(self, run_memory_bytes: int = 0) -> None:
        self.run_memory_bytes, self.said, self.away = run_memory_bytes, [], False

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.said.append(body)
        return {}

    async def get(self, path: str) -> dict[str, Any]:
        if self.away:
            raise ServiceError("away")
        return {"run_memory_bytes": self.run_memory_bytes}


def turns(part: Any, seconds: float) -> None:
    async def follow() -> None:
        going = asyncio.create_task(part.run())
        await asyncio.sleep(seconds)
        going.cancel()

    asyncio.run(follow())


def test_it_says_what_the_work_lacks_as_far_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui.busy.LOOK", 0.005)
    calls, memory = Calls(), [(8 * GIB, 12 * GIB)]
    service: Any = calls
    reporter = ActivityReporter(lambda: service, "comfyui-1", lambda: True, lambda: True, lambda: memory[0])
    turns(reporter, 0.05)
    assert calls.said == [{"who": "comfyui-1", "seconds": 5.0}]
    memory[0] = (2 * GIB, 6 * GIB)  # others took some since, and it needed 8 before
    turns(reporter, 0.05)
    assert calls.said[-1] == {"who": "comfyui-1", "seconds": 5.0, "memory_bytes": 2 * GIB}


class Host:
    def __init__(self, calls: Calls, *, free: int = 0, allowed: bool = True) -> None:
        self.idle, self.unloaded = True, 0
        service: Any = calls
        self.unloader = Unloader(
            lambda: service, lambda: allowed, lambda: self.idle, lambda: free, self.unload
        )

    def unload(self) -> None:
        self.unloaded += 1


TRAINING = {"type": "loop.state", "project": "acme", "state": "training"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui.freeing.LOOK", 0.005)
    monkeypatch.setattr("comfyui.freeing.IDLE", 0.02)


def test_models_are_unloaded_once_when_a_run_begins_and_the_queue_is_empty() -> None:
    host = Host(Calls())
    turns(host.unloader, 0.05)
    assert host.unloaded == 0, "no run begins"
    host.unloader.on_event(TRAINING)
    host.idle = False
    turns(host.unloader, 0.05)
    assert host.unloaded == 0, "never in the middle of a queue"
    host.idle = True
    turns(host.unloader, 0.1)
    assert host.unloaded == 1
    host.unloader.on_event(TRAINING)
    host.unloader.on_event({**TRAINING, "state": "gating"})
    turns(host.unloader, 0.05)
    assert host.unloaded == 1, "that run is over"


@pytest.mark.parametrize(
    ("taken", "free", "allowed", "unloads"),
    [
        (8 * GIB, 6 * GIB, True, 1),
        (8 * GIB, 9 * GIB, True, 0),  # both fit
        (0, 9 * GIB, True, 1),  # what the run takes is not known
        (8 * GIB, 6 * GIB, False, 0),
    ],
)
def test_only_where_it_is_allowed_and_needed(taken: int, free: int, allowed: bool, unloads: int) -> None:
    host = Host(Calls(taken), free=free, allowed=allowed)
    host.unloader.on_event(TRAINING)
    turns(host.unloader, 0.08)
    assert host.unloaded == unloads


def test_a_service_that_is_away_is_asked_again() -> None:
    calls = Calls(8 * GIB)
    host = Host(calls)
    calls.away = True
    host.unloader.on_event(TRAINING)
    turns(host.unloader, 0.05)
    assert host.unloaded == 0
    calls.away = False
    turns(host.unloader, 0.08)
    assert host.unloaded == 1


def test_it_is_off_until_somebody_turns_it_on(tmp_path: Path) -> None:
    assert Config().free_before_runs is False
    file = ConfigFile(tmp_path / "settings.json")
    assert file.change(free_before_runs=True).free_before_runs is True
    assert ConfigFile(tmp_path / "settings.json").config.free_before_runs is True
    with pytest.raises(ValueError, match="true or false"):
        file.change(free_before_runs="yes")
