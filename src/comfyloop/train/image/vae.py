"""Loads VAEs: those in a checkpoint, and separate ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from comfyloop.errors import ModelError
from comfyloop.files import there
from comfyloop.stable_diffusion import shapes
from comfyloop.stable_diffusion.folder import VAES, read_json
from comfyloop.stable_diffusion.header import CONVERT_VAE
from comfyloop.stable_diffusion.shapes import Family
from comfyloop.train.image.model import ImageFamily
from comfyloop.train.image.weights import building, fill, read_part, read_tensors


def load_vae(place: Path, family: ImageFamily) -> AutoencoderKL | AutoencoderTiny:
    """A VAE of its own: a diffusers folder, or a single file with or without the prefix of checkpoints."""
    if there(str(place)) is None:
        raise ModelError(f"There is no VAE {str(place)[:300]}.", "Name a VAE's folder or file.")
    if place.is_dir():
        return _vae_of_folder(place)
    if family == "sd3" or family == "flux":
        raise ModelError(f"The VAE {place} is no folder.", "Name a VAE's diffusers folder for SD3 and Flux.")
    if not place.is_file():
        raise ModelError(f"{place} is no file and no folder.", "Name a VAE's folder or file.")
    tensors = read_tensors(place, CONVERT_VAE)
    at = shapes.VAE_PREFIX
    if not any(name.startswith(at) for name in tensors):
        tensors = {at + name: tensor for name, tensor in tensors.items()}
    if any(name.startswith((f"{at}encoder.down_blocks.", f"{at}decoder.up_blocks.")) for name in tensors):
        raise ModelError(
            f"{place} is the weights of a diffusers folder, whose config.json says the rest.",
            f"Name the folder: {place.parent}.",
        )
    with building(place):
        vae = vae_of(tensors, {name: tuple(t.shape) for name, t in tensors.items()}, family)
    if vae is None:
        raise ModelError(f"{place} holds no VAE.", "Name a VAE's folder or file.")
    return vae


def _vae_of_folder(place: Path) -> AutoencoderKL | AutoencoderTiny:
    try:
        config = read_json(place / "config.json")
        kinds = dict(zip(VAES, (AutoencoderKL, AutoencoderTiny), strict=True))
        name = config.get("_class_name", "AutoencoderKL")
        if name not in kinds:
            raise ModelError(f"It is a {name}.", f"Use one of {', '.join(kinds)}.")
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise ModelError(
                "It moves latents by a mean for each channel (latents_mean), as EDM models do; that is not trained.",
                "Name another VAE.",
            )
        vae: AutoencoderKL | AutoencoderTiny = read_part(kinds[name], place)
    except ModelError as error:
        raise ModelError(f"The VAE {place} cannot be used. {error.message}", error.hint) from None
    return vae


def vae_of(
    tensors: Mapping[str, Tensor], shape_of: shapes.Shapes, family: Family
) -> AutoencoderKL | AutoencoderTiny | None:
    at = shapes.VAE_PREFIX
    if any(name.startswith(f"{at}taesd_decoder.") for name in shape_of):
        return _taesd({name.removeprefix(at): t for name, t in tensors.items() if name.startswith(at)})
    config = shapes.vae(shape_of, family)
    if config is None:
        return None
    vae = AutoencoderKL(**config)
    fill(vae, convert_ldm_vae_checkpoint(dict(tensors), config), "VAE")
    return vae


def _taesd(tensors: Mapping[str, Tensor]) -> AutoencoderTiny:
    """ComfyUI's names for a tiny autoencoder; its decoder counts the clamp in front of the layers."""
    state = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in {"taesd_encoder", "taesd_decoder"}:
            number, _, rest = rest.partition(".")
            side = part.removeprefix("taesd_")
            state[f"{side}.layers.{int(number) - (side == 'decoder')}.{rest}"] = tensor
    # ComfyUI hands the UNet (encoded / vae_scale + vae_shift) * 0.18215
    scale, shift = (
        float(tensors.get(f"vae_{n}", torch.tensor(d))) for n, d in (("scale", 1.0), ("shift", 0.0))
    )
    if shift != 0:
        raise ModelError("Its tiny VAE shifts latents, which is not supported.", "Name another VAE.")
    latent = state["encoder.layers.14.weight"].shape[0]
    vae = AutoencoderTiny(scaling_factor=round(0.18215 / scale, 6), latent_channels=latent)
    fill(vae, state, "VAE")
    return vae
