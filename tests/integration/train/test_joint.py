"""A joint run: text side, prompts that it writes, image side, in one process; killed between them."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from comfyloop.train import recipes
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.recipes import joint as joint_recipe
from comfyloop.train.recipes import sft
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.runners import local
from comfyloop.train.specs.files import read_spec, write_spec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.text import TrainSpec
from tests.image_models import make_tiny_sd15
from tests.integration.train.runs import finish, rows


def pictures(folder: Path) -> list[dict[str, Any]]:
    """Four kept pictures: three whose prompt a model had written from a brief, one with the person's own."""
    (folder / "images").mkdir()
    chance = random.Random(0)
    made = []
    for number in range(4):
        colour = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        Image.new("RGB", (64, 64), colour).save(folder / "images" / f"{number}.png")
        brief = [{"role": "user", "content": f"Write a prompt for thing {number}."}] if number else []
        last = {"role": "assistant" if number else "user", "content": f"thing {number}, ink"}
        made.append({"id": f"p{number}", "messages": [*brief, last], "picked": f"images/{number}.png"})
    return made


@pytest.fixture
def joint(tiny_llm: Path, tmp_path: Path) -> Path:
    run, data = tmp_path / "run", tmp_path / "snapshot"
    data.mkdir()
    write_lines(data / "train.jsonl", rows())
    write_lines(data / "train.captioned_image.jsonl", pictures(data))
    checkpoint = make_tiny_sd15(tmp_path / "tiny.safetensors")
    few: dict[str, Any] = {"max_steps": 3, "save_steps": 1, "threads": 1, "nice": 10, "dtype": "float32"}
    text = TrainSpec(model=str(tiny_llm), train=str(data / "train.jsonl"), **few)
    image = ImageTrainSpec(
        model=str(checkpoint), train=str(data / "train.captioned_image.jsonl"), resolution=64, **few
    )
    write_spec(run, JointSpec(text=text, image=image, writer_model=str(tiny_llm), prompt_tokens=8))
    return run


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_here(run: Path) -> None:
    """What a run's process does with its spec, in this one."""

    def side(
        directory: RunDirectory, spec: TrainSpec | ImageTrainSpec, log: RunLog, control: Control
    ) -> None:
        if isinstance(spec, ImageTrainSpec):
            recipes.run(directory, spec, log, control)
        else:
            sft.run(directory, spec, log, control)

    directory, spec = RunDirectory(run), read_spec(run)
    assert isinstance(spec, JointSpec)
    log = RunLog(directory)
    joint_recipe.run(directory, spec, log, Control(directory, log.held), side)


def test_one_run_gives_both_adapters(joint: Path) -> None:
    train_here(joint)
    assert (joint / "adapter" / "text" / "adapter_model.safetensors").exists()
    assert (joint / "adapter" / "image" / "lora.safetensors").exists()
    steps = [(line.get("side"), line["step"]) for line in RunDirectory(joint).log_lines()]
    assert steps == [(side, step) for side in ("text", "image") for step in (1, 2, 3)]
    trained = [json.loads(line) for line in (joint / "image" / "train.jsonl").read_text().splitlines()]
    own = [row for row in trained if not row["id"].endswith("-written")]
    assert [row["messages"][-1]["content"] for row in own] == [f"thing {n}, ink" for n in range(4)]
    assert {row["id"] for row in trained} - {row["id"] for row in own} <= {f"p{n}-written" for n in (1, 2, 3)}
    assert len(trained) > len(own), "the text side wrote no prompt"


def test_a_killed_run_goes_on_in_its_side(joint: Path, tiny_llm: Path) -> None:
    """Forked from a warm trainer, as in a loop."""
    checkpoints = RunDirectory(joint).side("image").checkpoints
    warm = WarmTrainer(minutes=5)
    warm.prepare(str(tiny_llm), "float32", images=True)
    process = local.start(joint, warm=warm)
    assert psutil.Process(process.pid).ppid() == warm.pid
    for _ in range(1200):
        if checkpoints.exists() and any(checkpoints.iterdir()):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    local.wait(joint, timeout=30)
    text = joint / "text" / "adapter" / "adapter_model.safetensors"
    before = text.stat().st_mtime_ns
    local.start(joint, warm=warm)
    finish(joint)
    warm.close()
    assert text.stat().st_mtime_ns == before
    sides = [line.get("side") for line in RunDirectory(joint).log_lines()]
    assert sides == ["text"] * 3 + ["image"] * 3
