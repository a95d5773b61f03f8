"""Frozen base weights in four bits (NF4, Dettmers et al. 2023), through bitsandbytes: for QLoRA and to serve."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from comfyloop.models.parts import Parts


def in_four_bits(auto: Any, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the language model's linear layers in NF4, with double quantisation.

    The vision tower, the projector and the head are not quantised: they are small compared with the language model,
    and quantising them would cost quality.
    """
    with torch.device("meta"):
        skeleton = auto.from_config(copy.deepcopy(config))
    parts, head = Parts(skeleton), skeleton.get_output_embeddings()
    whole = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear) and (parts.of(name) != "llm" or module is head)
    ]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def four_bit_layers(model: nn.Module) -> list[Any]:
    """The layers of bitsandbytes' in a model, without what PEFT has put around them."""
    return [module for module in model.modules() if hasattr(module._parameters.get("weight"), "quant_state")]


def keep_unpacked(model: nn.Module) -> int:
    """Permanently prevent bitsandbytes from packing 4-bit weights for inference; returns the number of layers.

    Since 0.49 a forward pass without gradients on a CPU with AVX512-BF16, such as an evaluation of the hold-out,
    packs a layer's weights, and from then on the gradients through it are silently wrong (cosine 0.01 to 0.8); a
    layer with a bias fails.
    """
    layers = four_bit_layers(model)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def plain_weight(layer: nn.Linear) -> torch.Tensor:
    """A linear layer's weight [out, in] in float32, whether it is in four bits or not."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.float()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, state).float()  # type: ignore[no-any-return]
