"""The shipped image starter in the real ComfyUI, by the nodes that everyone uses and without a download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.starter.image import denoiser
from tests.acceptance.comfyui.conftest import RunningComfyUI
from tests.starter_pictures import colour, learn_blue

pytestmark = pytest.mark.slow


def graph(checkpoint: str, prompt: str, lora: str | None) -> dict[str, Any]:
    """Checkpoint, LoRA, two texts, sampler, picture: ComfyUI's first workflow."""
    source = "lora" if lora else "model"
    nodes: dict[str, Any] = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "wanted": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": [source, 1]}},
        "unwanted": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": [source, 1]}},
        "paper": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": denoiser.SIDE, "height": denoiser.SIDE, "batch_size": 1},
        },
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": [source, 0], "positive": ["wanted", 0], "negative": ["unwanted", 0],
                "latent_image": ["paper", 0], "seed": 1, "steps": 20,
                "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "picture": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "saved": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "starter"}},
    }  # fmt: skip
    if lora:
        nodes["lora"] = {
            "class_type": "LoraLoader",
            "inputs": {
                "model": ["model", 0],
                "clip": ["model", 1],
                "lora_name": lora,
                "strength_model": 1.0,
                "strength_clip": 1.0,
            },
        }
    return nodes


def test_it_draws_and_takes_a_lora(comfyui: RunningComfyUI, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["comfyui", "link", str(comfyui.base), "--image-model", "--json"])
    checkpoint = Path(json.loads(told.output)["checkpoint"])
    shutil.copy(learn_blue(checkpoint, tmp_path / "run"), comfyui.base / "models/loras/blue.safetensors")
    comfyui.start()
    pictures = []
    for lora in (None, "blue.safetensors"):
        entry = comfyui.run(graph(checkpoint.name, "red apple", lora))
        (made,) = entry["outputs"]["saved"]["images"]
        pictures.append(Image.open(comfyui.base / "output" / made["filename"]))
    apple, recoloured = pictures
    assert apple.size == (denoiser.SIDE, denoiser.SIDE)
    red, green, blue = colour(apple)
    assert red > green + 0.15 and red > blue + 0.15
    assert colour(recoloured)[2] > blue + 0.1
    log = comfyui.log.read_text(errors="replace")
    assert "lora key not loaded" not in log and "unet missing" not in log and "unet unexpected" not in log
