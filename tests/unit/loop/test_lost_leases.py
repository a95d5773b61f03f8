"""A turn whose lease runs out: it is tried again, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfyloop import curate
from comfyloop.loop.controller import Controller
from comfyloop.loop.cycle import LoopCycle
from comfyloop.loop.lease import lease_of, this_process
from comfyloop.records import Loop, LoopState, Project, Snapshot
from comfyloop.settings import Settings
from comfyloop.store import leases, loops
from tests.unit.serve.gateway import Gateway, instant, running_gateway
from tests.unit.serve.test_serve_router import eventually

ENDED = "nothing_to_train"


@pytest.fixture
def gateway(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr("comfyloop.loop.controller.TICK_SECONDS", 0.05)
    cold = settings.model_copy(update={"warm_trainer": False})
    with running_gateway(cold, instant()) as running:
        yield running
        running.controller.stop()


def run_out(gateway: Gateway) -> None:
    """What a process that is held up does: not renew."""
    with gateway.store.begin() as conn:
        holder = leases.holder(conn, lease_of("acme"))
        assert holder is not None and leases.renew(conn, lease_of("acme"), holder[0], -1)


def held_up(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Curating takes longer than the lease, so many times; the tries are in the list."""
    tried: list[int] = []
    work = gateway.controller._stages
    real = work.curate  # of nothing: the project has no feedback

    def curating(project: Project, *, fresh: bool | None = None) -> Snapshot | curate.NothingToTrain:
        tried.append(loop_of(gateway).attempts)
        if len(tried) <= times:
            run_out(gateway)
        return real(project, fresh=fresh)

    monkeypatch.setattr(work, "curate", curating)
    return tried


def loop_of(gateway: Gateway) -> Loop:
    with gateway.store.read() as conn:
        return loops.get(conn, "acme")


def test_what_loses_its_lease_each_time_is_given_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = held_up(gateway, monkeypatch, times=99)
    controller = gateway.controller
    controller.start()
    controller.request("acme")
    eventually(lambda: loop_of(gateway).outcome == "failed", seconds=20)
    assert tried == [0, 1, 2]  # max_attempts of them: in `curating` for ever before
    ended = loop_of(gateway)
    assert ended.state is LoopState.IDLE and "gave no sign for 30 seconds while curating" in ended.error


def test_a_lease_that_is_lost_once_costs_one_try(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = held_up(gateway, monkeypatch, times=1)
    controller = gateway.controller
    controller.start()
    controller.request("acme")
    eventually(lambda: loop_of(gateway).outcome == ENDED, seconds=20)
    assert tried == [0, 1] and loop_of(gateway).attempts == 0


def another(gateway: Gateway) -> Controller:
    return Controller(gateway.controller._stages)


def test_another_controller_counts_what_a_silent_one_left(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was held up has not come back yet: its lease has run out, and it lives."""
    tried = held_up(gateway, monkeypatch, times=0)
    with gateway.store.begin() as conn:
        loops.save(conn, Loop(project="acme", state=LoopState.CURATING))
        assert leases.acquire(conn, lease_of("acme"), this_process(), -1)
    controller = another(gateway)
    controller.start()
    eventually(lambda: loop_of(gateway).outcome == ENDED, seconds=20)
    controller.stop()
    assert tried == [1]


@pytest.mark.parametrize("left", [-1, 60])  # killed over night, and a moment ago
def test_a_controller_that_was_killed_costs_no_try(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    tried = held_up(gateway, monkeypatch, times=0)
    host = this_process().rsplit("/", 3)[0]
    with gateway.store.begin() as conn:
        loops.save(conn, Loop(project="acme", state=LoopState.CURATING))
        assert leases.acquire(conn, lease_of("acme"), f"{host}/{2**22 + 1}/0.00/dead", left)
    gateway.controller.start()
    eventually(lambda: loop_of(gateway).outcome == ENDED, seconds=20)
    assert tried == [0]


def test_who_has_lost_its_turn_to_another_writes_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = gateway.controller._stages
    real = work.curate

    def curating(project: Project, *, fresh: bool | None = None) -> Snapshot | curate.NothingToTrain:
        run_out(gateway)
        with gateway.store.begin() as conn:
            assert leases.acquire(conn, lease_of("acme"), "another/1/1.00/c", 60)
        return real(project, fresh=fresh)

    monkeypatch.setattr(work, "curate", curating)
    with gateway.store.begin() as conn:
        loops.save(conn, Loop(project="acme", state=LoopState.CURATING))
        assert leases.acquire(conn, lease_of("acme"), "me", 60)
    LoopCycle(work, "acme", "me").run()
    assert loop_of(gateway) == Loop(
        project="acme", state=LoopState.CURATING, updated_at=loop_of(gateway).updated_at
    )
