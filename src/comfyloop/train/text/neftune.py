"""NEFTune: noise on the embeddings of the tokens that are trained on (Jain et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def noise(embedding: nn.Module, alpha: float, lengths: Sequence[int]) -> Iterator[None]:
    """In this context, each sample of l tokens in a row gets uniform noise of alpha / sqrt(l * hidden).

    The padding that others count into l is not there in a packed row. Images come in after the embeddings and
    get none.

    Args:
        embedding: The model's input embeddings, [1, L] -> [1, L, hidden].
        lengths: Tokens of each sample in the row; they add up to L.
    """

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        size = torch.repeat_interleave(
            torch.tensor([alpha / math.sqrt(n * output.shape[-1]) for n in lengths]), torch.tensor(lengths)
        )
        spread = torch.empty_like(output).uniform_(-1, 1)
        return output + spread * size.to(output)[None, :, None]

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
