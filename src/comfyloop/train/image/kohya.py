"""The LoRA as a file that ComfyUI's `LoraLoader` takes whole: kohya's keys, with alpha written out.

ComfyUI only warns about keys that it does not know and then draws with the rest; files in diffusers' or PEFT's
own form lose most of their keys there, and without alpha the scale silently becomes 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from comfyloop.durable import appear
from comfyloop.errors import ModelError
from comfyloop.train.image.lora import parts
from comfyloop.train.image.model import ImageModel
from comfyloop.train.image.weights import read_tensors
from comfyloop.train.run.directory import disk_error

FILE = "lora.safetensors"

BASE_VERSIONS = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3", "flux": "flux1"}
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-768-v/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "sd3": "stable-diffusion-3/lora",
    "flux": "flux-1-dev/lora",
}


def tensors(model: ImageModel, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """`….lora_down.weight`, `….lora_up.weight` and `….alpha` of every trained module, contiguous on the CPU."""
    out: dict[str, Tensor] = {}
    for part in parts(model):
        out[f"{part.key}.lora_down.weight"] = part.down.detach().to("cpu", dtype).contiguous()
        out[f"{part.key}.lora_up.weight"] = part.up.detach().to("cpu", dtype).contiguous()
        out[f"{part.key}.alpha"] = torch.tensor(part.alpha, dtype=torch.float32)
    return out


def metadata(model: ImageModel, about: Mapping[str, str]) -> dict[str, str]:
    """What other tools show of a LoRA, and `comfyloop.*` for where it came from; all values are text."""
    lora_parts = parts(model)
    rank, alpha = len(lora_parts[0].down), lora_parts[0].alpha
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": BASE_VERSIONS[model.family],
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[model.family],
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        **predicts(model),
        **{f"comfyloop.{name}": value for name, value in about.items() if value},
        **({"modelspec.title": about["title"]} if about.get("title") else {}),
        **({"modelspec.trigger_phrase": about["trigger_words"]} if about.get("trigger_words") else {}),
    }


_PREDICTS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""What a UNet predicts of a noisy picture, in the words of kohya's files."""


def predicts(model: ImageModel) -> dict[str, str]:
    """What a UNet is taught to predict, as its LoRA says it: on a model that predicts another thing it is noise."""
    if model.is_flow:
        return {}
    config = model.scheduler.config
    fields = {"modelspec.prediction_type": _PREDICTS[config.prediction_type]}
    return fields | ({"ss_zero_terminal_snr": "True"} if config.get("rescale_betas_zero_snr") else {})


def refuse_another_prediction(model: ImageModel, metadata: Mapping[str, str], source: str) -> None:
    """Raise ModelError when the LoRA to go on from was taught to predict another thing than this model."""
    now = predicts(model).get("modelspec.prediction_type")
    before = metadata.get("modelspec.prediction_type")
    if before is not None and now is not None and before != now:
        raise ModelError(
            f"{source} was taught on a model that predicts {before}, and this one predicts {now}.",
            "Set prediction_type (in the loop the project's image_prediction_type) as its run had it, or begin afresh "
            "(in the loop warm_start = false).",
        )


def save(
    model: ImageModel, place: Path, about: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write the directory `place` with the LoRA in it; it appears whole or not at all.

    Raises:
        StorageError: The disk refuses.
    """

    def write(making: Path) -> None:
        save_file(tensors(model, dtype), making / FILE, metadata=metadata(model, about))
        (making / FILE).chmod(0o644)  # the writer makes files that only their owner can read

    try:
        appear(place, write)
    except OSError as error:
        raise disk_error(place, error) from error


def read(lora: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Raises ModelError when it is not a LoRA with kohya keys."""
    tensors = read_tensors(lora, "Name a version's image adapter.")
    if not any(name.endswith(".lora_down.weight") for name in tensors):
        raise ModelError(f"{lora} is not a LoRA with kohya keys.", "Name a version's image adapter.")
    with safe_open(lora, "pt") as file:
        return tensors, file.metadata() or {}
