"""The shipped image starter: it draws what is asked, by our sampler and by diffusers', and learns other colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from comfyloop.starter.image import denoiser, ensure
from comfyloop.train.image import kohya
from comfyloop.train.image.render import draw
from comfyloop.train.image.spec import ImageTrainSpec
from comfyloop.train.image.student import Student, prepare
from comfyloop.train.runners import local
from comfyloop.train.spec import write_spec
from comfyloop.train.status import RunDirectory
from tests.integration.train.runs import finish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("cache"))


def student(model: Path, folder: Path, lora: Path | None = None) -> Student:
    told: dict[str, Any] = {"model": str(model), "train": "none", "dtype": "float32"}
    if lora is not None:
        told["adapter"] = {"r": 8, "lora_alpha": 8, "target_modules": "all", "init_from": str(lora)}
    folder.mkdir(exist_ok=True)
    return prepare(RunDirectory(folder), ImageTrainSpec.model_validate(told))


def colour(picture: Image.Image) -> NDArray[np.float64]:
    """Mean red, green and blue of what is not white paper, in 0..1."""
    pixels = np.asarray(picture, np.float64).reshape(-1, 3) / 255
    drawn = pixels[pixels.min(1) < 0.8]
    assert len(drawn) > 0.1 * len(pixels), "the paper is empty"
    mean: NDArray[np.float64] = drawn.mean(0)
    return mean


def test_it_draws_what_is_asked(checkpoint: Path, tmp_path: Path) -> None:
    painter = student(checkpoint, tmp_path)
    apple, frog = (draw(painter, prompt, seed=1) for prompt in ("red apple", "frog"))
    assert apple.size == (denoiser.SIDE, denoiser.SIDE)
    red, green, blue = colour(apple)
    assert red > green + 0.15 and red > blue + 0.15
    red, green, blue = colour(frog)
    assert green > red + 0.1 and green > blue + 0.1

    model = painter.model
    (encoder,) = model.text_encoders
    pipeline = StableDiffusionPipeline(
        vae=model.vae, text_encoder=encoder.model, tokenizer=encoder.tokenizer, unet=model.denoiser,
        scheduler=EulerDiscreteScheduler.from_config(model.scheduler.config, timestep_spacing="linspace"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, *[denoiser.SIDE // 8] * 2, generator=torch.Generator().manual_seed(1))
    theirs = pipeline(
        "frog", height=denoiser.SIDE, width=denoiser.SIDE, num_inference_steps=20, guidance_scale=5.0, latents=noise
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(frog, int) - np.asarray(theirs, int)).max() <= 2


def test_twenty_steps_move_its_colours(checkpoint: Path, tmp_path: Path) -> None:
    """Four of its own pictures in blue for red: then a picture that was not among them is bluer, too."""
    painter = student(checkpoint, tmp_path / "before")
    run = tmp_path / "run"
    run.mkdir()
    rows = []
    for i, prompt in enumerate(("red apple", "strawberry", "tulip", "pizza")):
        drawn = np.asarray(draw(painter, prompt, seed=i))
        Image.fromarray(np.ascontiguousarray(drawn[..., ::-1])).save(run / f"{i}.png")
        rows.append({"messages": [{"role": "user", "content": prompt}], "picked": f"{i}.png"})
    (run / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "model": str(checkpoint), "train": "train.jsonl", "recipe": "image_sft", "max_steps": 20, "epochs": 99,
        "learning_rate": 2e-3, "threads": 1, "nice": 0, "adapter": {"r": 8, "lora_alpha": 8, "target_modules": "all"},
    }  # fmt: skip
    write_spec(run, ImageTrainSpec.model_validate(told))
    local.start(run)
    finish(run)
    before = colour(draw(painter, "red heart", seed=7))
    after = colour(
        draw(student(checkpoint, tmp_path / "after", run / "adapter" / kohya.FILE), "red heart", seed=7)
    )
    assert (after - before)[2] > 0.1 and (after - before)[0] < -0.1, (before, after)
