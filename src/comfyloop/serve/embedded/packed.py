"""Linear layers whose weights are laid out once, as oneDNN's products of few rows want them.

A product of bfloat16 on a CPU otherwise brings its weights into that order at every call, which for a few rows
takes longer than the product itself: packed, a decode step of a small model takes half the time, and gives the same
bits. A packed weight is a copy, so how many are made is bounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]  # (rows, in) -> (rows, out)


class Packer:
    """Packs as long as the copies take at most `limit` bytes; beyond it, and elsewhere than in bfloat16 on a CPU,
    a layer reads its weight as it is."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.bytes = 0

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        packed = self._pack(weight)
        if packed is None:
            return lambda x: functional.linear(x, weight, bias)
        product = torch.ops.mkldnn._linear_pointwise
        return lambda x: product(x, packed, bias, "none", [], "")

    def _pack(self, weight: Tensor) -> Tensor | None:
        if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or weight.nbytes > self._left:
            return None
        try:
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        except (
            AttributeError,
            RuntimeError,
        ):  # a torch without oneDNN, or a processor that it does not serve
            return None
        self._left -= weight.nbytes
        self.bytes += weight.nbytes
        return packed
