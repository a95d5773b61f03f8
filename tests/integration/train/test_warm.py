"""Runs forked from the warm trainer: the same as cold ones, sooner, and alone whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from comfyloop.train import runners
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.runners import local
from comfyloop.train.specs.image import ImageTrainSpec
from tests.integration.train.runs import curve, finish

pytestmark = pytest.mark.slow

LONG = {"max_steps": 100_000, "epochs": 100_000}

MakeRun = Callable[..., Path]


@pytest.fixture
def warm(tiny_llm: Path) -> Iterator[WarmTrainer]:
    trainer = WarmTrainer(minutes=5)
    trainer.prepare(str(tiny_llm), "float32")
    yield trainer
    trainer.close()


def seconds_to_step(run: Path, step: int = 1) -> float:
    began = time.monotonic()
    next(line for line in local.follow(run, interval=0.005) if line["step"] >= step)
    return time.monotonic() - began


def test_a_run_with_an_image_side_needs_a_warm_trainer_that_has_one(
    warm: WarmTrainer, tiny_llm: Path, tmp_path: Path
) -> None:
    spec = ImageTrainSpec(model="gone.safetensors", train="gone.jsonl")
    assert warm.fork(RunDirectory(tmp_path), spec, 0, 0, {}) is None, "to be started cold"
    for_texts = warm.pid
    warm.prepare(str(tiny_llm), "float32", images=True)
    for_both = warm.pid
    assert for_both != for_texts
    warm.prepare(str(tiny_llm), "float32")
    assert warm.pid == for_both, "it can do what is asked, and more"


def gone(pid: int, seconds: float = 10) -> bool:
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_warm_run_is_a_cold_run_sooner(tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer) -> None:
    cold_run = make_run(tiny_llm, "cold", holdout="holdout.jsonl", nice=10)
    local.start(cold_run)
    cold = seconds_to_step(cold_run)
    finish(cold_run)

    long = make_run(tiny_llm, "long", threads=2, nice=15, **LONG)
    process = local.start(long, warm=warm)
    seen = psutil.Process(process.pid)
    assert seen.ppid() == warm.pid
    seconds_to_step(long)
    assert os.getsid(process.pid) == process.pid
    assert seen.nice() == 15
    assert local.poll(long).pid == process.pid
    runners.cancel(long)
    finish(long, TrainState.CANCELLED)
    assert gone(process.pid)

    warm_run = make_run(
        tiny_llm, "warm", holdout="holdout.jsonl", nice=10
    )  # the second one from the same process
    assert psutil.Process(local.start(warm_run, warm=warm).pid).ppid() == warm.pid
    took = seconds_to_step(warm_run)
    finish(warm_run)
    assert took < 0.5 * cold, (took, cold)
    assert curve(warm_run) == curve(cold_run)
    weights = "adapter/adapter_model.safetensors"
    assert (warm_run / weights).read_bytes() == (cold_run / weights).read_bytes()


def test_killed_in_any_state_it_takes_no_run_along(
    tiny_llm: Path, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "comfyloop.train.prefork.trainer")
    trainer = WarmTrainer(minutes=5)

    def killed() -> None:
        assert trainer.pid is not None
        os.kill(trainer.pid, signal.SIGKILL)

    trainer.prepare(str(tiny_llm), "float32")
    time.sleep(0.3)
    killed()  # while loading
    first = make_run(tiny_llm, "first", max_steps=2, nice=10)
    local.start(first, warm=trainer)
    assert "first starts cold" in caplog.text
    assert trainer.pid is None

    trainer.prepare(str(tiny_llm), "float32")
    second = make_run(tiny_llm, "second", nice=10, **LONG)
    process = local.start(second, warm=trainer)
    assert psutil.Process(process.pid).ppid() == trainer.pid
    seconds_to_step(second)
    killed()  # while a run of it is under way
    seconds_to_step(second, local.poll(second).step + 5)
    assert local.poll(second).state is TrainState.RUNNING
    runners.cancel(second)
    finish(second, TrainState.CANCELLED)
    finish(first)

    trainer.prepare(str(tiny_llm), "float32")
    assert trainer._process is not None
    trainer._process._receive(60)  # it is ready
    trainer._process._ready = True
    os.kill(trainer.pid or 0, signal.SIGSTOP)  # it takes the request and is killed before it answers
    third = make_run(tiny_llm, "third", max_steps=2, nice=10)
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {trainer.pid}"])
    local.start(third, warm=trainer)
    killer.wait()
    assert "third starts cold: the warm trainer" in caplog.text
    finish(third)
    assert len(curve(third)) == 2


def test_it_ends_with_the_service_and_its_runs_do_not(tiny_llm: Path, make_run: MakeRun) -> None:
    run = make_run(tiny_llm, nice=10, **LONG)
    service = (
        "import sys, time; from comfyloop.train.runners import local; from comfyloop.train.prefork.trainer import *;"
        f"w = WarmTrainer(5); w.prepare({str(tiny_llm)!r}, 'float32');"
        f"local.start({str(run)!r}, warm=w); print(w.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", service], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    warm_pid = int(process.stdout.readline())
    seconds_to_step(run)
    process.kill()
    process.wait()
    process.stdout.close()
    assert gone(warm_pid)
    seconds_to_step(run, local.poll(run).step + 3)
    runners.cancel(run)
    finish(run, TrainState.CANCELLED)


def test_it_lets_go_of_memory_and_of_what_has_changed(
    tiny_llm: Path, make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "comfyloop.train.prefork.trainer")
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_llm.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    trainer = WarmTrainer(minutes=1 / 60)
    trainer.prepare(str(model), "float32")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config, indent=1))
    run = make_run(model, max_steps=1, nice=10)
    local.start(run, warm=trainer)
    assert "run starts cold: the base model or the code has changed" in caplog.text
    assert trainer.pid is None
    trainer.prepare(str(model), "float32")
    pid: Any = trainer.pid
    assert pid is not None and gone(pid, 60)
    assert trainer.pid is None
    finish(run)
    assert RunDirectory(run).adapter.is_dir()
