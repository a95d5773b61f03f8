"""Pictures that the image side draws are those that diffusers' pipeline draws of the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from comfyloop.train.image.render import draw
from comfyloop.train.image.trainable import prepare
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.image import ImageTrainSpec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_picture_is_that_of_diffusers(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(f"tiny_{family}")
    spec = ImageTrainSpec.model_validate({"model": str(place), "train": "none", "dtype": "float32"})
    student = prepare(RunDirectory(tmp_path), spec)
    ours = draw(student, "a red fox", seed=3, steps=3, guidance=4.0)

    model = student.model
    scheduler = EulerDiscreteScheduler.from_config(model.scheduler.config, timestep_spacing="linspace")
    parts = {"unet": model.denoiser, "vae": model.vae, "scheduler": scheduler}
    for suffix, encoder in zip(("", "_2"), model.text_encoders, strict=False):
        parts |= {f"tokenizer{suffix}": encoder.tokenizer, f"text_encoder{suffix}": encoder.model}
    if family == "sd15":
        others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **others)
        more = {}
    else:
        pipeline = StableDiffusionXLPipeline(
            **parts, add_watermarker=False, force_zeros_for_empty_prompt=False
        )
        more = {"original_size": (64, 64), "target_size": (64, 64)}
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        "a red fox", height=64, width=64, num_inference_steps=3, guidance_scale=4.0, latents=noise, **more
    ).images[0]
    assert ours.size == theirs.size == (64, 64)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1
