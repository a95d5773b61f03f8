"""Counts a language model's parameters on an empty copy built from its configuration: no weights are read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from comfyloop.models.figures import Figures
from comfyloop.models.parts import Parts


def count(config: Any, auto: Any) -> Figures:
    """Args:
    auto: The class of transformers' that makes a model of the configuration.
    """
    with torch.device("meta"):
        empty = auto.from_config(copy.deepcopy(config))
    parts, head = Parts(empty), empty.get_output_embeddings()
    linear = [
        module.weight.numel()
        for name, module in empty.named_modules()
        if isinstance(module, nn.Linear) and module is not head and parts.of(name) == "llm"
    ]
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    return Figures(
        linear=sum(linear),
        others=sum(parameter.numel() for parameter in empty.parameters()) - sum(linear),
        largest=max(linear, default=0),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        cached=2 * text.num_hidden_layers * shared * width,
        vocabulary=text.vocab_size,
        sees=parts.vit is not empty and parts.vit is not empty.base_model,
    )
