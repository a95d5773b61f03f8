"""Draws pictures with the current model and its LoRA, as a sampler in ComfyUI would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from comfyloop.train.image.buckets import Fit
from comfyloop.train.image.latents import native_resolution
from comfyloop.train.image.loss import Noising
from comfyloop.train.image.rows import Picture
from comfyloop.train.image.trainable import TrainableImageModel

STEPS, GUIDANCE = 20, 5.0


@torch.no_grad()
def draw(
    trainable: TrainableImageModel,
    prompt: str,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    negative: str = "",
) -> Image.Image:
    """One picture by Euler steps with classifier-free guidance.

    Args:
        size: Width and height; None: the square that the model was trained on.
        guidance: 1 leaves `negative` out and halves the work.
    """
    model = trainable.model
    side = native_resolution(model)
    width, height = size or (side, side)
    generator = torch.Generator().manual_seed(seed)
    if model.is_flow:
        image: Image.Image = model.pipeline(
            prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
        ).images[0]
        return image
    scheduler = EulerDiscreteScheduler.from_config(model.scheduler.config, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    frame = [(_blank(width, height), Fit((width, height), (width, height), (0, 0)))]
    conditions = trainable.captions.of(prompt)
    negative_conditions = trainable.captions.of(negative) if guidance != 1 else conditions
    shape = (1, model.denoiser.config.in_channels, height // 8, width // 8)
    latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noising = Noising(scheduler.scale_model_input(latents, t), t[None], latents)
        prediction = trainable.predict(noising, conditions, frame).cpu()
        if guidance != 1:
            negative_prediction = trainable.predict(noising, negative_conditions, frame).cpu()
            prediction = negative_prediction + guidance * (prediction - negative_prediction)
        latents = scheduler.step(prediction, t, latents).prev_sample
    return decode(trainable, latents)


def decode(trainable: TrainableImageModel, latents: Tensor) -> Image.Image:
    """The picture of latents [1, channels, h, w] as the denoiser gives them."""
    model = trainable.model
    latents = latents / model.latent_scale + model.latent_shift
    pixels = model.vae.decode(latents.to(model.vae.device, model.vae.dtype)).sample[0].float().cpu()
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values))


def _blank(width: int, height: int) -> Picture:
    """SDXL is told a picture's size; this one has only that."""
    return Picture(Path(), "", width, height)
