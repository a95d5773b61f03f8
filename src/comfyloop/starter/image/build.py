"""Write the starter's checkpoint: one file in SD1.5's layout, which ComfyUI and our trainer load as it is.

Needs NumPy alone. The denoiser and the picture coder come from the shipped weights; the text encoder is
regenerated (`text.py`).
"""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from comfyloop.stable_diffusion.layout import UNET_PREFIX

from . import denoiser, text
from .packing import Tensors, unpack

VAE_PREFIX, TEXT_PREFIX = "first_stage_model.", "cond_stage_model.transformer."
LATENT_SCALE = (
    0.18215  # SD1.5's; ComfyUI multiplies by it what the coder divides by it, so latents stay as trained
)


def read(shipped: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(shipped, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def build(shipped: Path, checkpoint: Path) -> None:
    """Write `checkpoint` (about 300 MB, float16) from the shipped weights."""
    packed, metadata = read(shipped)
    table = packed.pop("tokens")
    weights: Tensors = dict(unpack(packed))  # already under the single-file names
    weights[f"{VAE_PREFIX}vae_scale"] = np.array(LATENT_SCALE, np.float32)
    weights[f"{VAE_PREFIX}vae_shift"] = np.array(0.0, np.float32)
    weights |= {TEXT_PREFIX + name: weight for name, weight in text.weights(table.astype(np.int8)).items()}
    described = {
        "format": "pt",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": "ComfyLoop image starter",
        "modelspec.license": "Apache-2.0",
        "modelspec.resolution": f"{denoiser.SIDE}x{denoiser.SIDE}",
        "modelspec.prediction_type": "epsilon",
    }
    save_file(weights, checkpoint, metadata=described | metadata)


__all__ = ["LATENT_SCALE", "TEXT_PREFIX", "UNET_PREFIX", "VAE_PREFIX", "build", "read"]
