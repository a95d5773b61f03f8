"""What tests of the shipped image starter share: to paint with it, to teach it a colour, to measure colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comfyloop.train.image import kohya
from comfyloop.train.image.render import draw
from comfyloop.train.image.trainable import TrainableImageModel, prepare
from comfyloop.train.recipes import image_sft
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.image import ImageTrainSpec

STEPS = 8
"""Enough for colours."""
ADAPTER = {"r": 8, "lora_alpha": 8, "target_modules": "all"}


def painter(model: Path, folder: Path, lora: Path | None = None) -> TrainableImageModel:
    told: dict[str, Any] = {"model": str(model), "train": "none", "dtype": "float32", "adapter": ADAPTER}
    if lora is not None:
        told["adapter"] = ADAPTER | {"init_from": str(lora)}
    folder.mkdir(exist_ok=True)
    return prepare(RunDirectory(folder), ImageTrainSpec.model_validate(told))


def colour(picture: Image.Image) -> NDArray[np.float64]:
    """Mean red, green and blue of what is not white paper, in 0..1."""
    pixels = np.asarray(picture.convert("RGB"), np.float64).reshape(-1, 3) / 255
    drawn = pixels[pixels.min(1) < 0.8]
    assert len(drawn) > 0.1 * len(pixels), "the paper is empty"
    mean: NDArray[np.float64] = drawn.mean(0)
    return mean


def learn_blue(model: Path, run: Path) -> Path:
    """A LoRA of twenty steps on four of the model's own pictures with red and blue exchanged."""
    trainable = painter(model, run)
    rows = []
    for i, prompt in enumerate(("red apple", "strawberry", "tulip", "pizza")):
        drawn = np.asarray(draw(trainable, prompt, seed=i, steps=STEPS))
        Image.fromarray(np.ascontiguousarray(drawn[..., ::-1])).save(run / f"{i}.png")
        rows.append({"messages": [{"role": "user", "content": prompt}], "chosen": f"{i}.png"})
    (run / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "model": str(model), "train": "train.jsonl", "recipe": "image_sft", "max_steps": 20, "epochs": 99,
        "learning_rate": 2e-3, "threads": 1, "nice": 0, "adapter": ADAPTER,
    }  # fmt: skip
    directory = RunDirectory(run)
    log = RunLog(directory)
    image_sft.run(directory, ImageTrainSpec.model_validate(told), log, Control(directory, log.held))
    return run / "adapter" / kohya.FILE
