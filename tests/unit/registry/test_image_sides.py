"""Whether an image LoRA fits the image model of a project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from comfyloop.errors import InvalidInput


def test_an_image_lora_for_another_kind_of_model_is_refused(
    tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    from comfyloop.registry import base_model

    modules = sorted(base_model._modules(tiny_sd15))
    module = next(m for m in modules if "attn2_to_q" in m)
    tensors = {
        f"{module}.lora_down.weight": np.ones((2, 32), np.float16),
        f"{module}.lora_up.weight": np.ones((32, 2), np.float16),
        f"{module}.alpha": np.float32(2),
    }
    save_file({name: np.asarray(t) for name, t in tensors.items()}, tmp_path / "l.safetensors")
    base_model.check_image("It", tmp_path / "l.safetensors", str(tiny_sd15))
    here = base_model.image_base("sdxl.safetensors", str(tiny_sdxl))
    with pytest.raises(InvalidInput, match=r"Stable Diffusion 1.5.*SDXL.*does not fit"):
        base_model.refuse_other_base("acme@1", base_model.image_base("x", str(tiny_sd15)), here)
    tensors["lora_unet_no_such_module.lora_down.weight"] = np.ones((2, 4), np.float16)
    tensors["lora_unet_no_such_module.lora_up.weight"] = np.ones((4, 2), np.float16)
    save_file({name: np.asarray(t) for name, t in tensors.items()}, tmp_path / "m.safetensors")
    with pytest.raises(InvalidInput, match="does not have"):
        base_model.check_image("It", tmp_path / "m.safetensors", str(tiny_sd15))
