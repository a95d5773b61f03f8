"""Transformers trained by flow matching (SD3, Flux), from their diffusers folders.

Prompts go through the pipeline's own `encode_prompt`, so three text encoders and their padding are diffusers'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from comfyloop.errors import ModelError
from comfyloop.train.image.checkpoint import ImageModel, TextEncoder

PIPELINES: dict[str, tuple[str, Any, Any]] = {
    "StableDiffusion3Pipeline": ("sd3", StableDiffusion3Pipeline, SD3Transformer2DModel),
    "FluxPipeline": ("flux", FluxPipeline, FluxTransformer2DModel),
}
GUIDANCE = 3.5
"""What a guidance-distilled Flux is told while it is trained, as in diffusers' example."""


def load(place: Path, pipeline_name: str, dtype: torch.dtype) -> ImageModel:
    """Read the transformer, the VAE and the text encoders of a folder; the VAE in float32.

    Raises:
        ModelError: It is a pipeline of another family.
    """
    if pipeline_name not in PIPELINES:
        raise ModelError(
            f"{place} is a {pipeline_name}, which cannot be trained on.",
            f"Name a folder of SD1.5, SD2, SDXL, {', '.join(PIPELINES)}.",
        )
    family, pipeline, transformer = PIPELINES[pipeline_name]
    here = {"local_files_only": True}
    denoiser = transformer.from_pretrained(place, subfolder="transformer", dtype=dtype, **here)
    vae = AutoencoderKL.from_pretrained(place, subfolder="vae", **here)
    left_out = {}
    if family == "sd3" and not (place / "text_encoder_3").is_dir():  # many do without its T5, which is large
        left_out = {"text_encoder_3": None, "tokenizer_3": None}
    whole = pipeline.from_pretrained(place, transformer=denoiser, vae=vae, dtype=dtype, **left_out, **here)
    vae.float()  # the pipeline has cast it, and half precision loses detail
    encoders = []
    for suffix in ("", "_2", "_3"):
        model = getattr(whole, f"text_encoder{suffix}", None)
        if model is not None:
            encoders.append(TextEncoder(getattr(whole, f"tokenizer{suffix}"), model))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(place, subfolder="scheduler", **here)
    return ImageModel(family, denoiser, vae, encoders, scheduler, whole)  # type: ignore[arg-type]


def encode(model: ImageModel, caption: str) -> tuple[Tensor, Tensor]:
    """Text states [1, tokens, width] and pooled states [1, width] of a caption."""
    device = model.denoiser.device
    if model.family == "flux":
        states, pooled, _ = model.pipeline.encode_prompt(caption, None, device=device)
        return states, pooled
    states, _, pooled, _ = model.pipeline.encode_prompt(
        caption, None, None, device=device, do_classifier_free_guidance=False
    )
    return states, pooled


def predict(model: ImageModel, noisy: Tensor, timesteps: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
    """What the transformer says of noisy latents [B, C, h, w]; `timesteps` index the scheduler's sigmas."""
    denoiser = model.denoiser
    steps = model.scheduler.timesteps.to(noisy)[timesteps.cpu()].to(noisy)
    if model.family == "sd3":
        out: Tensor = denoiser(
            hidden_states=noisy, timestep=steps, encoder_hidden_states=states, pooled_projections=pooled
        ).sample
        return out
    batch, channels, height, width = noisy.shape
    guidance = torch.full((batch,), GUIDANCE).to(noisy) if denoiser.config.guidance_embeds else None
    ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype)
    packed = denoiser(
        hidden_states=FluxPipeline._pack_latents(noisy, batch, channels, height, width),
        timestep=steps / 1000,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        txt_ids=torch.zeros(states.shape[1], 3).to(noisy),
        img_ids=ids,
        guidance=guidance,
    ).sample
    unpacked: Tensor = FluxPipeline._unpack_latents(packed, height * 8, width * 8, vae_scale_factor=8)
    return unpacked
