"""QLoRA: frozen base weights in four bits (Dettmers et al. 2023), through bitsandbytes."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from comfyloop.errors import ModelError
from comfyloop.train.tuning import Parts


def in_four_bits(auto: Any, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` must be told: the language model's linear layers in NF4, their constants quantised too.

    The vision tower, the projector and the head stay as they are: small beside the language model, and worth
    more than the bits.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "quant_method = bnb needs bitsandbytes, which is not installed.", "pip install 'comfyloop[quant]'"
        )
    with torch.device("meta"):
        skeleton = auto.from_config(copy.deepcopy(config))
    parts, head = Parts(skeleton), skeleton.get_output_embeddings()
    whole = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear) and (parts.of(name) != "llm" or module is head)
    ]
    told = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )
    return {"quantization_config": told, "device_map": {"": device}}
