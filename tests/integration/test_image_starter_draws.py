"""The shipped image starter: it draws what is asked, by our sampler and by diffusers', and learns other colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from comfyloop.starter.image import denoiser, ensure
from comfyloop.train.image.render import draw
from tests.starter_pictures import STEPS, colour, learn_blue, painter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("cache"))


def test_it_draws_what_is_asked(checkpoint: Path, tmp_path: Path) -> None:
    side = denoiser.SIDE
    student = painter(checkpoint, tmp_path)
    apple, tree = (draw(student, prompt, seed=1) for prompt in ("red apple", "evergreen tree"))
    assert apple.size == (side, side)
    red, green, blue = colour(apple)
    assert red > green + 0.15 and red > blue + 0.15
    red, green, blue = colour(tree)
    assert green > red + 0.1 and green > blue + 0.1

    model = student.model
    (encoder,) = model.text_encoders
    pipeline = StableDiffusionPipeline(
        vae=model.vae, text_encoder=encoder.model, tokenizer=encoder.tokenizer, unet=model.denoiser,
        scheduler=EulerDiscreteScheduler.from_config(model.scheduler.config, timestep_spacing="linspace"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(1))
    theirs = pipeline(
        "evergreen tree", height=side, width=side, num_inference_steps=20, guidance_scale=5.0, latents=noise
    ).images[0]
    assert np.abs(np.asarray(tree, int) - np.asarray(theirs, int)).max() <= 2


def test_twenty_steps_move_its_colours(checkpoint: Path, tmp_path: Path) -> None:
    """After four pictures in blue for red, one that was not among them is bluer, too."""
    lora = learn_blue(checkpoint, tmp_path / "run")
    before, after = (
        colour(
            draw(painter(checkpoint, tmp_path / str(file is None), file), "red heart", seed=7, steps=STEPS)
        )
        for file in (None, lora)
    )
    change = after - before
    assert change[2] > 0.1 and change[0] < -0.1, (before, after)
