"""Which runner does what: the settings choose for new runs, each run is watched by the one that started it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyloop.errors import InvalidInput, NotFound
from comfyloop.settings import Settings
from comfyloop.train import runners
from comfyloop.train.run.control import ask_for_large_pages
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.runners import Runners
from comfyloop.train.runners.container import ContainerRunner
from comfyloop.train.runners.local import LocalRunner
from comfyloop.train.runners.ray import RayRunner


def test_a_run_is_watched_by_the_runner_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... though the settings have changed since, as after a restart of the service."""
    run = RunDirectory(tmp_path / "run-1")
    run.path.mkdir()
    asked: list[str] = []

    def note(kind: Any) -> None:
        monkeypatch.setattr(kind, "start", lambda self, run_dir: asked.append(f"start {kind.__name__}"))
        real = kind.poll

        def poll(self: object, run_dir: Path) -> object:
            asked.append(f"poll {kind.__name__}")
            return real(self, run_dir)

        monkeypatch.setattr(kind, "poll", poll)

    for kind in (LocalRunner, ContainerRunner, RayRunner):
        note(kind)
    before = Runners(Settings(train_runner="container"))
    assert before.poll(run.path).state is TrainState.QUEUED
    before.start(run.path)
    after = Runners(Settings(train_runner="ray", ray_address="http://127.0.0.1:9"))
    after.poll(run.path)
    new = RunDirectory(tmp_path / "run-2")
    new.path.mkdir()
    after.start(new.path)
    after.poll(new.path)
    for each in (before, after):
        each.close()
    assert asked == [
        "poll ContainerRunner", "start ContainerRunner", "poll ContainerRunner", "start RayRunner",
        "poll RayRunner",
    ]  # fmt: skip


def test_files_hold_and_cancel_whichever_runner_it_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    runners.hold(run.path)
    runners.hold(run.path)
    assert run.hold_file.exists()
    runners.release(run.path)
    runners.release(run.path)
    assert not run.hold_file.exists()
    runners.cancel(run.path)
    assert run.cancel_file.exists()


def test_what_no_runner_can_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InvalidInput, match="Set ray_address"):
        Runners(Settings(train_runner="ray")).start(run)
    local = Runners(Settings(warm_trainer=False))
    with pytest.raises(NotFound, match=r"no spec\.json"):
        local.start(run)
    assert local.poll(run).state is TrainState.QUEUED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.perturb=3"}, "glibc.malloc.perturb=3:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),  # a person's own choice
    ],
)
def test_a_trainer_is_started_with_large_pages(before: dict[str, str], after: str) -> None:
    assert ask_for_large_pages({"HOME": "/home/me", **before}) == {
        "HOME": "/home/me",
        "GLIBC_TUNABLES": after,
    }
