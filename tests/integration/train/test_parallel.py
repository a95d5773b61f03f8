"""Runs of two real processes: FSDP2 and DeepSpeed ZeRO, each step equal to the run of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from comfyloop.train import runners
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.runners import local
from comfyloop.train.specs.files import read_spec, write_spec
from tests.integration.train.runs import THINGS, curve, finish, rows, wait_until_held

pytestmark = pytest.mark.slow

MakeRun = Callable[..., Path]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (extra `deepspeed`)"
)
WAYS = ["fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]

# 11 samples of unlike lengths in batches of 2: the last step of an epoch has a micro-batch of one sample, of
# which the second rank has no share.
SHAPE = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 7, "epochs": 10,
    "learning_rate": 0.02, "holdout": "holdout.jsonl", "rank_timeout": 60,
}  # fmt: skip


def unlike(recipe: str = "sft") -> list[dict[str, Any]]:
    """Rows whose answers have 1, 2, 3 ... sentences, for any recipe."""
    data = rows()
    for i, row in enumerate(data):
        row["messages"][-1]["content"] += " Made slowly." * i
        if recipe == "dpo":
            row["rejected_response"] = f"Buy this {THINGS[i]} now!"
        if recipe == "kto":
            row["label"] = i % 3 != 0
    return data


def assert_equal(run: Path, alone: Path) -> None:
    """Each step of each rank, and what is left, are those of the run of one process."""
    for log in (curve(run), curve(RunDirectory(run).path / "ranks" / "1")):
        assert len(log) == len(curve(alone))
        for line, expected in zip(log, curve(alone), strict=True):
            assert line == pytest.approx(expected, abs=2e-5), (line, expected)
    weights = "adapter/adapter_model.safetensors"
    ours, theirs = load_file(run / weights), load_file(alone / weights)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Adam divides a gradient by its own size: where that is near nothing, rounding tells in the weight
        torch.testing.assert_close(ours[name].float(), theirs[name], atol=3e-4, rtol=1e-3)
    assert _config(run) == _config(alone)


def _config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run / "adapter" / "adapter_config.json").read_text())
    return {**config, "target_modules": set(config["target_modules"])}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_the_steps_of_one(
    tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer, way: str
) -> None:
    """... and go on with the same curve after one of them was killed."""
    alone = make_run(tiny_llm, "alone", unlike(), **SHAPE)
    local.start(alone, warm=warm)
    run = make_run(tiny_llm, "two", unlike(), **SHAPE, world_size=2, parallel=way)
    launcher = psutil.Process(local.start(run, warm=warm).pid)
    assert launcher.ppid() == warm.pid
    next(line for line in local.follow(run, interval=0.005) if line["step"] >= 3)
    ranks = launcher.children()
    assert len(ranks) == 2
    max(ranks, key=lambda rank: rank.pid).kill()
    began = time.monotonic()
    status = local.wait(run, timeout=60)
    if status.state is not TrainState.SUCCEEDED:  # unless it was quicker than the kill
        assert status.state is TrainState.DIED
        assert status.error.startswith("Rank 1 of 2 was killed (SIGKILL) at step ")
        assert time.monotonic() - began < 30
        assert not any(rank.is_running() for rank in ranks)
        local.start(run, warm=warm)
    finish(run)
    finish(alone)
    assert_equal(run, alone)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_learns_to_pinned_losses(
    tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer, way: str
) -> None:
    run = make_run(
        tiny_llm, "run", rows(), world_size=2, parallel=way, max_steps=12, epochs=10, eval_steps=12,
        learning_rate=0.02, holdout="holdout.jsonl", rank_timeout=60,
    )  # fmt: skip
    local.start(run, warm=warm)
    finish(run)
    lines = list(RunDirectory(run).log_lines())
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    looks = [line["holdout_loss"] for line in lines if line["holdout_loss"] is not None]
    assert [losses[0], losses[-1], looks[0], looks[-1]] == pytest.approx(
        [7.375, 1.383, 7.339, 1.489], rel=0.03
    )


@pytest.mark.parametrize(
    ("recipe", "way"),
    [("dpo", "fsdp2"), ("kto", "fsdp2"), pytest.param("kto", "zero3", marks=needs_deepspeed)],
)
def test_preferences(tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer, recipe: str, way: str) -> None:
    values = {**SHAPE, "recipe": recipe, "max_steps": 4, "holdout": None, "learning_rate": 0.005}
    alone = make_run(tiny_llm, "alone", unlike(recipe), **values)
    run = make_run(tiny_llm, "two", unlike(recipe), **values, world_size=2, parallel=way)
    for each in (alone, run):
        local.start(each, warm=warm)
    finish(alone)
    finish(run)
    assert_equal(run, alone)


@pytest.mark.parametrize("way", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_whole_weights(tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer, way: str) -> None:
    """Full fine-tuning, the head that is also the embedding included, leaves a model directory."""
    values = {**SHAPE, "tuner_type": "full", "max_steps": 4, "learning_rate": 1e-3}
    alone = make_run(tiny_llm, "alone", unlike(), **values)
    run = make_run(tiny_llm, "two", unlike(), **values, world_size=2, parallel=way)
    for each in (alone, run):
        local.start(each, warm=warm)
    finish(alone)
    finish(run)
    for line, expected in zip(curve(run), curve(alone), strict=True):
        assert line == pytest.approx(expected, abs=2e-5), (line, expected)
    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (run, alone))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images(tiny_vlm: Path, make_run: MakeRun, warm: WarmTrainer, dtype: str) -> None:
    """A frozen tower stays whole on each rank; samples with and without images mix."""
    data = [*rows(images=True)[:5], *rows()[5:]]
    values = {**SHAPE, "max_steps": 3, "dtype": dtype}
    runs = [
        make_run(tiny_vlm, "alone", data, **values),
        make_run(tiny_vlm, "two", data, **values, world_size=2),
    ]
    for run in runs:
        (run / "images").mkdir()
        for i, thing in enumerate(THINGS[:5]):
            Image.new("RGB", (40, 30), (20 * i, 200 - 10 * i, 90)).save(run / "images" / f"{thing}.png")
        local.start(run, warm=warm)
    for run in runs:
        finish(run)
    alone, two = (curve(run) for run in runs)
    for line, expected in zip(two, alone, strict=True):
        bound = 1e-5 if dtype == "float32" else 0.02
        assert line["loss"] == pytest.approx(expected["loss"], abs=bound)
        assert line["holdout_loss"] == pytest.approx(expected["holdout_loss"], abs=bound)


def test_what_cannot_be_shared(tiny_vlm: Path, make_run: MakeRun, warm: WarmTrainer) -> None:
    everything = make_run(
        tiny_vlm, "tower", world_size=2, max_steps=1, adapter={"target_modules": r".*\.(q_proj|linear_1)"}
    )
    zero3 = make_run(tiny_vlm, "zero3", world_size=2, max_steps=1, parallel="zero3")
    for run in (everything, zero3):
        local.start(run, warm=warm)
    assert "trains a vision tower or projector" in finish(everything, TrainState.FAILED).error
    why = "Set parallel = fsdp2 or zero2" if find_spec("deepspeed") else "needs deepspeed"
    assert why in finish(zero3, TrainState.FAILED).error


def test_held_cancelled_and_gone_on_with(tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer) -> None:
    run = make_run(tiny_llm, max_steps=100_000, epochs=100_000, world_size=2, rank_timeout=3)
    launcher = psutil.Process(local.start(run, warm=warm).pid)
    next(line for line in local.follow(run, interval=0.01) if line["step"] >= 2)
    ranks = launcher.children()
    runners.hold(run)
    held = wait_until_held(run)
    time.sleep(3.5)  # longer than a rank may be silent: held is not lost
    assert local.poll(run).step == held.step
    runners.release(run)
    next(line for line in local.follow(run, interval=0.01) if line["step"] >= held.step + 2)
    runners.cancel(run)
    began = time.monotonic()
    status = finish(run, TrainState.CANCELLED)
    assert time.monotonic() - began < 5
    launcher.wait(15)
    assert not any(rank.is_running() for rank in ranks)
    files = {path.name for path in (run / "checkpoints" / f"step-{status.step}").iterdir()}
    assert {"parameters-rank0.safetensors", "parameters-rank1.safetensors", "state.json"} <= files

    write_spec(run, read_spec(run).model_copy(update={"world_size": 1}))
    local.start(run, warm=warm)
    assert "was written by 2 processes, and this run has 1" in finish(run, TrainState.FAILED).error
    write_spec(run, read_spec(run).model_copy(update={"world_size": 2}))
    process = local.start(run, warm=warm)
    next(line for line in local.follow(run, interval=0.01) if line["step"] > status.step)
    os.kill(process.pid, signal.SIGTERM)
    assert local.wait(run, timeout=30).state is TrainState.DIED
    assert "told to end by a signal" in RunDirectory(run).output_file.read_text()


def test_a_rank_that_hangs_or_fails_ends_the_run(
    tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer
) -> None:
    stuck = make_run(tiny_llm, "stuck", max_steps=100_000, epochs=100_000, world_size=2, rank_timeout=3)
    launcher = psutil.Process(local.start(stuck, warm=warm).pid)
    next(line for line in local.follow(stuck, interval=0.01) if line["step"] >= 2)
    max(launcher.children(), key=lambda rank: rank.pid).suspend()

    bad = make_run(tiny_llm, "bad", ["{broken", *rows()], world_size=2)
    local.start(bad, warm=warm)
    assert "train.jsonl:1: it is not JSON" in finish(bad, TrainState.FAILED).error

    status = local.wait(stuck, timeout=40)
    assert status.state is TrainState.DIED
    assert "Another process of the run is gone" in status.error


def test_torchrun(tiny_llm: Path, make_run: MakeRun, warm: WarmTrainer) -> None:
    """The same under torchrun, which refuses nothing: a wrong number of processes is refused here."""
    run = make_run(tiny_llm, world_size=3, max_steps=3)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "comfyloop.train", str(run),
    ]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode != 0
    assert "is to be trained by 3 processes and was started with 2" in local.poll(run).error
    write_spec(run, read_spec(run).model_copy(update={"world_size": 2}))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = make_run(tiny_llm, "alone", max_steps=3)
    local.start(alone, warm=warm)
    finish(alone)
    finish(run)
    assert_equal(run, alone)
