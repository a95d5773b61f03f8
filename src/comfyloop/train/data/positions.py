"""The positions that a model's own code assigns to the tokens of a sample.

Most families count 0, 1, 2, ... Those with M-RoPE (Qwen-VL and its relatives, arXiv:2409.12191) give each token
several positions at once, an image's tokens their frame, row and column, and the text after it goes on from the
largest of them. Their models compute that in `get_rope_index`, from ids and image sizes alone: it is called
here before any weight is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING

Positions = Callable[[Tensor, dict[str, Tensor]], Tensor]


def positions_of(config: Any) -> Positions:
    """The position function of a model with this configuration.

    Returns:
        A function of a sample's `input_ids` [L] and of what the processor made of it besides (`image_grid_thw`,
        `mm_token_type_ids` [1, L], ...): [L], or [n, L] for M-RoPE.
    """
    model = MODEL_MAPPING.get(type(config), None)
    if not hasattr(model, "get_rope_index"):
        return lambda input_ids, _: torch.arange(input_ids.numel())
    bare = model.__new__(model)  # the method reads nothing but the configuration
    nn.Module.__init__(bare)
    bare.config = config
    parameters = inspect.signature(bare.get_rope_index).parameters

    def positions(input_ids: Tensor, fields: dict[str, Tensor]) -> Tensor:
        if not any(name.endswith("grid_thw") for name in fields):
            return torch.arange(input_ids.numel()).expand(3, -1)
        arguments = {name: value for name, value in fields.items() if name in parameters}
        rope_index: Tensor = bare.get_rope_index(input_ids=input_ids[None], **arguments)[0]
        return rope_index[:, 0]

    return positions
