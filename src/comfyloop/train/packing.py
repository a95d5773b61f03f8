"""Several samples in one row, with no padding between them and none seeing another.

The tokens of a micro-batch are put end to end. Positions are those in each sample, and attention runs span by
span on its slice of the row and those that it goes on from, so the work is that of the samples alone: no padded
token goes through a layer, and no mask of the whole row is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "comfyloop_packed"
"""The attention implementation under which transformers finds the function below."""

WRITTEN_OUT = 1024
"""Longest sample whose attention scores are written out on a processor."""


class Span(NamedTuple):
    """Tokens of a row that follow each other in a sample."""

    length: int
    before: tuple[int, ...] = ()  # which of the row's spans come before it in that sample, first to last


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    spans: Sequence[Span] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row.

    Args:
        query: [1, heads, L, head_dim]; key and value: [1, kv_heads, L, head_dim].
        sliding_window: A token sees itself and this many less one before it; None: all.
        softcap: Scores are squeezed into -softcap .. softcap by tanh (Gemma 2); None: not.
        spans: The row, in order; their lengths add up to L. None: it is one sample.

    Returns:
        [1, L, heads, head_dim] and None (there are no attention weights to show).
    """
    spans = spans or [Span(query.shape[2])]
    queries, keys, values = (torch.split(x, [span.length for span in spans], 2) for x in (query, key, value))

    def sample(parts: Sequence[Tensor], number: int) -> Tensor:
        before = spans[number].before
        return torch.cat([parts[i] for i in (*before, number)], dim=2) if before else parts[number]

    parts = [
        _causal(q, sample(keys, n), sample(values, n), dropout, scaling, sliding_window, softcap)
        for n, q in enumerate(queries)
    ]
    together = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return together.transpose(1, 2).contiguous(), None


def _causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention of a sample's last l tokens, [1, heads, l, head_dim], to all m of it.

    On a processor it is written out, as long as the l x m scores are small: two to three times as fast,
    forward and backward, as torch's own kernel there (measured in bfloat16 at 32 to 512 tokens).
    """
    _, heads, length, width = q.shape
    groups, total = k.shape[1], k.shape[2]
    whole = window is None or window >= total
    if not softcap and (q.device.type != "cpu" or dropout > 0 or total > WRITTEN_OUT):
        seen = None
        if not whole:
            seen = _seen(length, total, window, q.device)
        elif length < total:
            seen = causal_lower_right(length, total)
            k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))  # it knows no shared heads
        return nn.functional.scaled_dot_product_attention(
            q, k, v, seen, dropout, is_causal=seen is None, scale=scaling, enable_gqa=heads != k.shape[1]
        )
    # The heads that share keys go through one product, one below the other.
    shared = heads // groups
    q = q.reshape(groups, shared * length, width)
    hidden = torch.full((length, total), -torch.inf, dtype=q.dtype, device=q.device)
    hidden = hidden.masked_fill(_seen(length, total, window, q.device), 0).repeat(shared, 1)
    scale = width**-0.5 if scaling is None else scaling
    if softcap:
        scores = hidden + softcap * torch.tanh((q @ k[0].transpose(1, 2)) * (scale / softcap))
    else:
        scores = torch.baddbmm(hidden, q, k[0].transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype)
    return (nn.functional.dropout(weights, dropout) @ v[0]).view(1, heads, length, width)


def _seen(length: int, total: int, window: int | None, device: torch.device) -> Tensor:
    """[l, m]: which of a sample's m keys each of its last l queries sees."""
    earlier = total - length
    causal = torch.ones(length, total, dtype=torch.bool, device=device).tril(earlier)
    return causal if window is None else causal.triu(earlier + 1 - window)


def _no_mask(**_: Any) -> None:
    """Packed attention needs none: it is causal within each sample by construction."""
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
