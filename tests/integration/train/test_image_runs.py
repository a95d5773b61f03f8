"""Real training processes of the image side, on a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from comfyloop.errors import DataError
from comfyloop.train import recipes, runners
from comfyloop.train.image import kohya
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.run.log import RunLog
from comfyloop.train.runners import local
from comfyloop.train.specs.files import read_spec, write_spec
from comfyloop.train.specs.image import ImageTrainSpec
from tests.integration.train.runs import finish

CURVE = ("step", "loss", "grad_norm", "learning_rate", "holdout_loss")


def shape(number: int, warm: bool) -> Image.Image:
    """A disc or a box somewhere, in one of many warm or cold colours."""
    chance = np.random.default_rng(number)
    strong, middle, weak = (
        int(v) for v in (chance.integers(200, 256), chance.integers(60, 160), chance.integers(0, 60))
    )
    picture = Image.new("RGB", (64, 64), (strong, middle, weak) if warm else (weak, middle, strong))
    left, top, size = (int(v) for v in chance.integers(4, 28, 3))
    draw = (ImageDraw.Draw(picture).ellipse, ImageDraw.Draw(picture).rectangle)[number % 2]
    draw((left, top, left + size, top + size), fill=(strong, strong, strong))
    return picture


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(model: Path, name: str, *, train: int, holdout: int = 0, **values: Any) -> Path:
        run = tmp_path / name
        (run / "images").mkdir(parents=True)
        for file, numbers in (("train", range(train)), ("holdout", range(train, train + holdout))):
            lines = []
            for i in numbers:
                shape(i, True).save(run / f"images/warm{i}.png")
                shape(i, False).save(run / f"images/cold{i}.png")
                prompt = [{"role": "user", "content": f"{('a disc', 'a box')[i % 2]}, 设计 {i % 3}"}]
                lines.append(
                    {"messages": prompt, "chosen": f"images/warm{i}.png", "rejected": f"images/cold{i}.png"}
                )
            (run / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        told = {
            "model": str(model), "train": "train.jsonl", "dtype": "float32", "threads": 1, "save_steps": 2,
            "eval_steps": 10, "bucket_step": 8, "nice": 0,
            "adapter": {"r": 4, "lora_alpha": 4, "target_modules": "all"},
            **({"holdout": "holdout.jsonl"} if holdout else {}), **values,
        }  # fmt: skip
        write_spec(run, ImageTrainSpec.model_validate(told))
        return run

    return make


def train_here(run: Path) -> None:
    """A run in this process: no start-up to pay for where nothing is stopped or killed."""
    directory, spec = RunDirectory(run), read_spec(run)
    assert isinstance(spec, ImageTrainSpec)
    log = RunLog(directory)
    recipes.run(directory, spec, log, Control(directory, log.held))


def curve(run: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in CURVE} for line in RunDirectory(run).log_lines()]


@pytest.mark.slow
def test_a_planted_preference_is_learned(tiny_sd15: Path, make_run: Callable[..., Path]) -> None:
    """Warm colours over cold ones: on pairs that were never seen, from a half to four in five and more."""
    run = make_run(
        tiny_sd15, "dpo", train=24, holdout=10, recipe="image_dpo", max_steps=30, epochs=99, beta_dpo=500.0,
        learning_rate=3e-3, lr_scheduler_type="constant",
    )  # fmt: skip
    train_here(run)
    looks = [
        line["pick_accuracy"]
        for line in RunDirectory(run).log_lines()
        if line.get("pick_accuracy") is not None
    ]
    assert looks[0] == 0.5 and looks[-1] >= 0.8, looks
    _, metadata = kohya.read(run / "adapter" / kohya.FILE)
    assert metadata["ss_base_model_version"] == "sd_v1"


@pytest.mark.slow
def test_a_run_learns_and_resumes_where_it_was(tiny_sd15: Path, make_run: Callable[..., Path]) -> None:
    """Cancelled in the middle and started again, a run ends with the same weights as one left alone."""
    told = {"train": 6, "holdout": 3, "max_steps": 12, "epochs": 99, "learning_rate": 3e-3, "ema_decay": 0.5}
    whole = make_run(tiny_sd15, "whole", **told)
    local.start(whole)
    finish(whole)
    lines = curve(whole)
    assert lines[-1]["holdout_loss"] < lines[0]["holdout_loss"]
    broken = make_run(tiny_sd15, "broken", **told)
    local.start(broken)
    next(line for line in local.follow(broken, interval=0.01) if line["step"] >= 5)
    runners.cancel(broken)
    assert local.wait(broken, timeout=120).state is TrainState.CANCELLED
    local.start(broken)
    finish(broken)
    assert curve(broken) == lines
    one, other = (kohya.read(run / "adapter" / kohya.FILE)[0] for run in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_single_picture_and_equal_pictures_are_no_trouble(
    pictures: int, tiny_sd15: Path, make_run: Callable[..., Path]
) -> None:
    run = make_run(tiny_sd15, "few", train=pictures, max_steps=2, epochs=2, prior_images=2)
    for i in range(pictures):
        shape(0, True).save(run / f"images/warm{i}.png")
    train_here(run)
    assert sorted(path.name for path in (run / "prior").iterdir()) == ["0.png", "1.png"]
    last = list(RunDirectory(run).log_lines())[-1]
    assert last["prior_loss"] > 0 and last["loss"] > 0


def test_what_cannot_be_trained_on_fails_in_a_sentence(
    tiny_sd15: Path, make_run: Callable[..., Path]
) -> None:
    run = make_run(tiny_sd15, "bad", train=2)
    (run / "images/warm1.png").write_bytes((run / "images/warm1.png").read_bytes()[:150])
    with pytest.raises(DataError, match=r"train\.jsonl:2.*warm1\.png"):
        train_here(run)
    run = make_run(tiny_sd15.with_name("none.safetensors"), "none", train=2)
    local.start(run)
    assert "There is no checkpoint" in finish(run, TrainState.FAILED).error
