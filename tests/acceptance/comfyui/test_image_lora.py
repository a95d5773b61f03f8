"""A LoRA that the image side writes, in the real ComfyUI: every key taken, and drawn with as diffusers draws."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyloop.stable_diffusion.layout import UNetShape
from comfyloop.train.image import checkpoint, kohya, lora
from comfyloop.train.image.model import ImageModel
from comfyloop.train.image.text import Captions
from comfyloop.train.specs.image import ImageAdapterSpec
from tests import image_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_DIR") or not os.environ.get("COMFYUI_PYTHON"),
        reason="set COMFYUI_DIR to a checkout of ComfyUI and COMFYUI_PYTHON to its Python",
    ),
]
HERE = Path(__file__).parent


def comfyui(script: str, *arguments: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.environ.get("COMFYUI_PYTHONPATH", ""),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [os.environ["COMFYUI_PYTHON"], str(HERE / script), *map(str, arguments)]
    folder = os.environ["COMFYUI_DIR"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def stirred(model: ImageModel, folder: Path, *, text_encoder: bool) -> Path:
    """A LoRA on everything that can be trained, which changes the picture, as a file."""
    lora.add(model, ImageAdapterSpec(r=4, lora_alpha=6, target_modules="all", text_encoder=text_encoder))
    chance = torch.Generator().manual_seed(4)
    for _, parameter in lora.trainable(model):
        parameter.data = (0.05 * torch.randn(parameter.shape, generator=chance)).half().float()
    kohya.save(model, folder / "adapter", {"project": "acme"})
    return folder / "adapter" / kohya.FILE


def euler(
    model: ImageModel, made: dict[str, Tensor], noise: Tensor, states: Tensor, pooled: Tensor | None
) -> Tensor:
    """ComfyUI's Euler steps, by diffusers' UNet."""
    extra = None
    if pooled is not None:
        extra = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    sigmas = made["sigmas"]
    x = noise * torch.sqrt(1 + sigmas[0] ** 2)
    for sigma, following, t in zip(sigmas[:-1], sigmas[1:], made["timesteps"], strict=True):
        predicted = model.denoiser(x / torch.sqrt(sigma**2 + 1), t, states, added_cond_kwargs=extra).sample
        x = x + (following - sigma) * predicted
    return x


@torch.no_grad()
def test_sd15(tmp_path: Path) -> None:
    comfyui("tiny_checkpoint.py", tmp_path / "models", tmp_path / "loras")
    place = tmp_path / "models" / "tiny.safetensors"
    model = checkpoint.load(place)
    file = stirred(model, tmp_path, text_encoder=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    save_file({"noise": noise}, tmp_path / "in.safetensors")
    comfyui("lora_probe.py", place, file, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    made = load_file(tmp_path / "out.safetensors")
    assert int(made["refused"]) == 0
    states = Captions(model, None).of("a red fox, 设计").states
    assert (states - made["states"]).abs().max() <= 1e-5 * made["states"].abs().max()
    latents = euler(model, made, noise, states, None)
    assert (latents - made["latents"] * 0.18215).abs().max() <= 1e-5 * latents.abs().max()
    with lora.reference(model, None):
        plain = euler(model, made, noise, states, None)
    assert (latents - plain).abs().max() > 1e-2  # the LoRA does change the picture


@torch.no_grad()
def test_sdxl(tmp_path: Path) -> None:
    """The UNet of the shape of Segmind-Vega, a small SDXL that ComfyUI knows; text states are given."""
    torch.manual_seed(6)
    shape = UNetShape(2, (False, True, True))
    unet = UNet2DConditionModel(
        block_out_channels=(320, 320, 320), layers_per_block=2, transformer_layers_per_block=(1, 1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048,
        attention_head_dim=(5, 5, 5), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    tensors = image_models.unet_tensors(unet, shape)
    place = tmp_path / "vega.safetensors"
    image_models.write(tensors, place)
    model = ImageModel(
        "sdxl", unet.half().float().eval(), image_models.tiny_kl(0.13025), [], checkpoint_scheduler()
    )
    file = stirred(model, tmp_path, text_encoder=False)
    chance = torch.Generator().manual_seed(2)
    given = {
        "noise": torch.randn(1, 4, 8, 8, generator=chance),
        "states": torch.randn(1, 77, 2048, generator=chance),
        "pooled": torch.randn(1, 1280, generator=chance),
    }
    save_file(given, tmp_path / "in.safetensors")
    comfyui("lora_probe.py", place, file, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    made = load_file(tmp_path / "out.safetensors")
    assert int(made["refused"]) == 0
    latents = euler(model, made, given["noise"], given["states"], given["pooled"])
    assert (latents - made["latents"] * 0.13025).abs().max() <= 1e-5 * latents.abs().max()


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_every_key_of_sd3_and_flux_is_known(family: str, tmp_path: Path) -> None:
    """The published models are too large for a test, so the names alone are compared."""
    comfyui("flow_keys.py", tmp_path / "keys.json")
    known = set(json.loads((tmp_path / "keys.json").read_text())[family])
    model = checkpoint.load(image_models.make_tiny_flow(tmp_path / family, family))
    lora.add(model, ImageAdapterSpec(target_modules="all"))
    keys = {part.key for part in lora.parts(model)}
    assert keys and keys <= known, sorted(keys - known)


def checkpoint_scheduler() -> DDPMScheduler:
    return DDPMScheduler(**checkpoint.SCHEDULE)
