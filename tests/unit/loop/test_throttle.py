"""Training holds while somebody waits, and goes on after the quiet time."""

from __future__ import annotations

from pathlib import Path

from comfyloop.loop.throttle import TrainingThrottle
from comfyloop.serve.routing.traffic import Traffic
from comfyloop.train import runners
from comfyloop.train.run.directory import RunDirectory


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_holds_while_answers_are_waited_for_and_a_while_after(tmp_path: Path) -> None:
    clock = Clock()
    traffic, run = Traffic(clock), RunDirectory(tmp_path)
    throttle = TrainingThrottle(traffic.quiet_seconds, 3.0, clock)

    def held() -> bool:
        throttle.update(tmp_path)
        return run.hold_file.exists()

    assert not held()
    traffic.enter()
    traffic.enter()
    assert held()
    traffic.leave()
    clock.now += 50
    assert held(), "one is still waiting"
    traffic.leave()
    clock.now += 2.9
    assert held(), "it is not quiet for long enough"
    clock.now += 0.2
    assert not held()
    traffic.busy.say("comfyui", 5)
    assert held()
    clock.now += 4.9
    assert held()
    clock.now += 0.2  # it said nothing more
    assert held()
    clock.now += 3
    assert not held()


def test_a_hold_that_a_former_controller_left_is_taken_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.hold_file.touch()
    TrainingThrottle(Traffic().quiet_seconds, 3.0).update(tmp_path)
    assert not run.hold_file.exists()


def test_what_a_person_holds_goes_on_when_a_person_says_so(tmp_path: Path) -> None:
    clock = Clock()
    traffic, run = Traffic(clock), RunDirectory(tmp_path)
    throttle = TrainingThrottle(traffic.quiet_seconds, 3.0, clock)
    runners.hold(tmp_path, by_hand=True)
    traffic.enter()
    throttle.update(tmp_path)
    traffic.leave()
    for _ in range(4):  # it is quiet, and longer than any hold of the throttle's own
        clock.now += 30
        throttle.update(tmp_path)
        assert run.hold_file.exists()
    runners.release(tmp_path, by_hand=True)
    assert not run.hold_file.exists()


def test_without_patience_it_never_holds(tmp_path: Path) -> None:
    traffic = Traffic()
    traffic.enter()
    TrainingThrottle(traffic.quiet_seconds, 0.0).update(tmp_path)
    assert not RunDirectory(tmp_path).hold_file.exists()


def test_a_run_ends_even_where_somebody_always_waits(tmp_path: Path) -> None:
    clock = Clock()
    traffic, run = Traffic(clock), RunDirectory(tmp_path)
    throttle = TrainingThrottle(traffic.quiet_seconds, 1.0, clock)
    traffic.enter()
    ran = 0.0
    for _ in range(4000):
        throttle.update(tmp_path)
        ran += 0.0 if run.hold_file.exists() else 0.2
        clock.now += 0.2
    assert 0.05 < ran / (4000 * 0.2) < 0.1


def test_where_others_lack_memory_a_held_run_steps_aside_and_does_not_breathe(tmp_path: Path) -> None:
    clock = Clock()
    traffic, run = Traffic(clock), RunDirectory(tmp_path)
    throttle = TrainingThrottle(traffic.quiet_seconds, 1.0, clock, traffic.busy.memory_bytes)
    traffic.busy.say("comfyui", 5, memory_bytes=2**30)
    throttle.update(tmp_path)
    assert run.hold_file.exists() and not run.aside_file.exists()
    for _ in range(40):
        clock.now += 2.5
        traffic.busy.say("comfyui", 5, memory_bytes=2**30)
        throttle.update(tmp_path)
        assert run.hold_file.exists() and run.aside_file.exists()
    traffic.busy.say("comfyui", 0)
    clock.now += 1.5
    throttle.update(tmp_path)
    assert not run.hold_file.exists() and not run.aside_file.exists()
