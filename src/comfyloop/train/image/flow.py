"""Transformers trained by flow matching (SD3, Flux), from their diffusers folders.

Prompts go through the pipeline's own `encode_prompt`, so three text encoders and their padding are diffusers'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from comfyloop.errors import ModelError
from comfyloop.train.image.model import ImageModel, TextEncoder, read_scheduler, read_tokenizer
from comfyloop.train.image.vae import load_vae
from comfyloop.train.image.weights import read_part

_CLIP = (CLIPTextModelWithProjection, CLIPTokenizer)
_KINDS: dict[str, tuple[Any, Any, dict[str, tuple[Any, Any]]]] = {
    "sd3": (
        StableDiffusion3Pipeline,
        SD3Transformer2DModel,
        {"": _CLIP, "_2": _CLIP, "_3": (T5EncoderModel, T5TokenizerFast)},
    ),
    "flux": (
        FluxPipeline,
        FluxTransformer2DModel,
        {"": (CLIPTextModel, CLIPTokenizer), "_2": (T5EncoderModel, T5TokenizerFast)},
    ),
}
"""Pipeline, transformer, and text encoders with their tokenizers by the ends of their folders' names."""
GUIDANCE = 3.5
"""What a guidance-distilled Flux is told while it is trained, as in diffusers' example."""


def load(place: Path, family: Literal["sd3", "flux"], dtype: torch.dtype) -> ImageModel:
    """Read the transformer, the VAE and the text encoders of a folder; the VAE in float32.

    Raises:
        ModelError: A part lacks tensors, cannot be read, or does not go with the others.
    """
    pipeline, transformer, suffixes = _KINDS[family]
    denoiser = read_part(transformer, place / "transformer", dtype)
    vae = load_vae(place / "vae", family)
    encoders: dict[str, TextEncoder | None] = {}
    for suffix, (kind, words) in suffixes.items():
        if suffix == "_3" and not (place / "text_encoder_3").is_dir():
            encoders[suffix] = None  # many do without SD3's T5, which is large
            continue
        model = read_part(kind, place / f"text_encoder{suffix}", dtype)
        encoders[suffix] = TextEncoder(read_tokenizer(words, place / f"tokenizer{suffix}", model), model)
    scheduler = read_scheduler(FlowMatchEulerDiscreteScheduler, place)
    whole = pipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=scheduler,
        **{f"text_encoder{suffix}": encoder and encoder.model for suffix, encoder in encoders.items()},
        **{f"tokenizer{suffix}": encoder and encoder.tokenizer for suffix, encoder in encoders.items()},
    )
    loaded_encoders = [encoder for encoder in encoders.values() if encoder is not None]
    return ImageModel(family, denoiser, vae, loaded_encoders, scheduler, whole)


def refuse_what_does_not_belong(model: ImageModel) -> None:
    """Raise ModelError when the transformer takes other latents than its VAE's, or other texts than its encoders'."""
    config, latent_channels = model.denoiser.config, model.vae.config.latent_channels
    expected = latent_channels * (4 if model.family == "flux" else 1)  # Flux sees two by two latents as one
    gives = config.out_channels or config.in_channels
    if config.in_channels != expected or gives != expected:
        raise ModelError(
            f"Its transformer takes {config.in_channels} channels and gives {gives}, where the latents of its VAE make "
            f"{expected}: models that fill in, or follow edges or depth, take more.",
            "Name the text-to-image model that it was made from, and a VAE that belongs to it.",
        )
    texts = [encoder.model.config for encoder in model.text_encoders]
    clips = [text for text in texts if not hasattr(text, "d_model")]
    pooled = clips[0].hidden_size if model.family == "flux" else sum(text.projection_dim for text in clips)
    pairs = [(pooled, config.pooled_projection_dim)]
    pairs += [(text.d_model, config.joint_attention_dim) for text in texts if hasattr(text, "d_model")]
    for state_width, width in pairs:
        if state_width != width:
            raise ModelError(
                f"Its text encoders give states of width {state_width}, and its transformer takes {width}.",
                "Name a model whose parts belong together.",
            )


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
