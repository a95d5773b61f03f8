"""Several samples in one row, without padding and without attention between samples.

The tokens of a micro-batch are concatenated. Positions are those within each sample, and attention runs per span on
its slice of the row and the slices that precede it in its sample. The work is that of the samples alone: no padding
goes through a layer, and no mask of the whole row is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "comfyloop_packed"
"""The attention implementation under which transformers finds the function below."""

WRITTEN_OUT = 1024
"""Longest sample whose attention scores are written out on a processor."""

PADDED = 32
"""Queries and keys of a span are padded to multiples of this many where scores are written out. Spans of one shape
share their products; a shape that was seen before costs no new kernel (a millisecond each); and softmax takes
half the time on rows that fill its vectors."""


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

    On a CPU (and on the meta device, where `text.rehearsal` measures memory) attention is written out for short
    samples: two to three times as fast, forward and backward, as torch's own kernel there (measured in bfloat16 at
    32 to 512 tokens).

    Args:
        query: [1, heads, L, head_dim]; key and value: [1, kv_heads, L, head_dim].
        sliding_window: A token sees itself and this many less one before it; None: all.
        softcap: Scores are squeezed into -softcap .. softcap by tanh (Gemma 2); None: not.
        spans: The row, in order; their lengths add up to L. None: it is one sample.

    Returns:
        [1, L, heads, head_dim] and None (there are no attention weights to show).
    """
    spans = tuple(spans or [Span(query.shape[2])])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = max(span.length + sum(spans[i].length for i in span.before) for span in spans)
    if softcap or (query.device.type in ("cpu", "meta") and not dropout and longest <= WRITTEN_OUT):
        rows = (x[0].transpose(0, 1) for x in (query, key, value))
        out: Tensor = _WrittenOut.apply(  # type: ignore[no-untyped-call]
            *rows, spans, scale, sliding_window, softcap, dropout
        )
        return out[None], None
    queries, keys, values = (torch.split(x, [span.length for span in spans], 2) for x in (query, key, value))
    parts = []
    for number, span in enumerate(spans):
        k, v = (torch.cat([x[i] for i in (*span.before, number)], dim=2) for x in (keys, values))
        parts.append(_by_torch(queries[number], k, v, dropout, scale, sliding_window))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _by_torch(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float, window: int | None) -> Tensor:
    """Causal attention of a sample's last l tokens, [1, heads, l, head_dim], to all m of it, by torch's kernels."""
    length, total = q.shape[2], k.shape[2]
    shared = q.shape[1] // k.shape[1]
    mask: Any = None
    if window is not None and window < total:
        mask = _hidden(total, window, torch.float32, q.device)[total - length : total, :total] == 0
    elif length < total:
        mask = causal_lower_right(length, total)
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))  # it knows no shared heads
    return nn.functional.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


class _Group(NamedTuple):
    """Spans whose queries and keys are padded to the same numbers, and go through one product.

    Tokens and heads are counted together: token t's head h is number t * heads + h of a row.
    """

    queries: Tensor  # [n * heads * rows] those numbers, span by span and head by head
    padding: Tensor  # which of them stand for no token
    keys: Tensor  # [n * kv_heads * keys] the same of keys and values; what is padded is hidden
    hidden: Tensor  # [n, 1, rows, keys] what is added to the score of each key for each query
    begin: int  # of its queries among those of all groups


class _Layout(NamedTuple):
    groups: list[_Group]
    places: Tensor  # [L * heads] where each is among the queries of all groups
    padded: int  # how many these are


@lru_cache(maxsize=8)
def _layout(
    spans: tuple[Span, ...],
    heads: int,
    kv_heads: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> _Layout:
    """The positions of each product's queries and keys in a row. The same for every layer of a step."""
    lengths = [span.length for span in spans]
    tokens = torch.split(torch.arange(sum(lengths)), lengths)
    members_by_size: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for span, own in zip(spans, tokens, strict=True):
        visible = torch.cat([tokens[i] for i in span.before] + [own])
        rows, keys = _padded(len(own)), _padded(len(visible))
        earlier = len(visible) - len(own)
        hidden = _hidden(rows + keys, window, dtype, device)[earlier : earlier + rows, :keys]
        members_by_size.setdefault((rows, keys), []).append((own, visible, hidden))
    groups: list[_Group] = []
    places = torch.empty(sum(lengths), heads, dtype=torch.long)
    begin = 0
    for (rows, keys), members in members_by_size.items():
        own = torch.stack([_repeat_last(own, rows) for own, _, _ in members])
        visible = torch.stack([_repeat_last(visible, keys) for _, visible, _ in members])
        padding = torch.stack([torch.arange(rows) >= len(own) for own, _, _ in members])
        padding = padding[:, None].expand(-1, heads, -1)  # [n, heads, rows]
        numbers = begin + torch.arange(padding.numel()).view(padding.shape)
        for (mine, _, _), number in zip(members, numbers, strict=True):
            places[mine] = number[:, : len(mine)].T
        groups.append(
            _Group(
                _of_heads(own, heads).to(device),
                padding.flatten().nonzero()[:, 0].to(device),
                _of_heads(visible, kv_heads).to(device),
                torch.stack([hidden for _, _, hidden in members])[:, None],
                begin,
            )
        )
        begin += padding.numel()
    return _Layout(groups, places.flatten().to(device), begin)


def _padded(length: int) -> int:
    return -(-length // PADDED) * PADDED


def _repeat_last(tokens: Tensor, length: int) -> Tensor:
    return torch.cat([tokens, tokens[-1:].expand(length - len(tokens))])


def _of_heads(tokens: Tensor, heads: int) -> Tensor:
    """[n, m] tokens -> [n * heads * m] their heads."""
    return (tokens[:, None] * heads + torch.arange(heads)[:, None]).flatten()


class _WrittenOut(torch.autograd.Function):
    """[L, heads, d], [L, kv_heads, d], [L, kv_heads, d] -> [L, heads, d].

    Heads that share keys are stacked in each product: [n * kv_heads, heads / kv_heads * l, d] for n spans. They are
    gathered by number: three to seven times as fast as copying span by span.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: tuple[Span, ...],
        scale: float,
        window: int | None,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        (_, heads, width), kv_heads = query.shape, key.shape[1]
        layout = _layout(spans, heads, kv_heads, window, query.dtype, query.device)
        queries, keys, values = (x.reshape(-1, width) for x in (query, key, value))
        gathered = query.new_empty(layout.padded, width)
        saved_tensors: list[Tensor | None] = []
        for group in layout.groups:
            n, _, rows, total = group.hidden.shape
            q = queries.index_select(0, group.queries).view(n * kv_heads, -1, width)
            k, v = (x.index_select(0, group.keys).view(n * kv_heads, total, width) for x in (keys, values))
            scores = _product(q, k.transpose(1, 2), scale / softcap if softcap else scale)
            slope = 1 - scores.tanh_().square() if softcap else None
            if softcap:
                scores.mul_(softcap)
            scores.view(n, heads, rows, total).add_(group.hidden)
            weights = torch.softmax(scores, -1)
            dropout_mask = nn.functional.dropout(torch.ones_like(weights), dropout) if dropout else None
            torch.bmm(
                weights if dropout_mask is None else weights * dropout_mask, v, out=_part(gathered, group, q)
            )
            saved_tensors += [q, k, v, weights, slope, dropout_mask]
        ctx.save_for_backward(*saved_tensors)
        ctx.layout, ctx.scale, ctx.shape, ctx.kv_shape = layout, scale, query.shape, key.shape
        return gathered.index_select(0, layout.places).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        above = gradients[0].reshape(-1, ctx.shape[-1])
        gathered = above.new_empty(ctx.layout.padded, above.shape[-1])
        wide = torch.promote_types(above.dtype, torch.float32)  # keys get their gradient from several spans
        of_key, of_value = (above.new_zeros(ctx.kv_shape, dtype=wide).flatten(0, 1) for _ in range(2))
        saved_tensors = iter(ctx.saved_tensors)
        for group in ctx.layout.groups:
            q, k, v, weights, slope, dropout_mask = (next(saved_tensors) for _ in range(6))
            of_out = above.index_select(0, group.queries).index_fill_(0, group.padding, 0.0).view(q.shape)
            of_weights = of_out @ v.transpose(1, 2)
            if dropout_mask is not None:
                of_weights *= dropout_mask
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            if slope is not None:
                of_scores *= slope
            _product(of_scores, k, ctx.scale, out=_part(gathered, group, q))
            of_k = _product(of_scores.transpose(1, 2), q, ctx.scale)  # [n * kv_heads, m, d]
            of_v = (weights if dropout_mask is None else weights * dropout_mask).transpose(1, 2) @ of_out
            for all_of_it, part in ((of_key, of_k), (of_value, of_v)):
                all_of_it.index_add_(0, group.keys, part.to(wide).flatten(0, 1))
        of_query = gathered.index_select(0, ctx.layout.places).view(ctx.shape)
        of_key, of_value = (x.to(above.dtype).view(ctx.kv_shape) for x in (of_key, of_value))
        return of_query, of_key, of_value, None, None, None, None, None


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=factor, out=out)


def _part(gathered: Tensor, group: _Group, like: Tensor) -> Tensor:
    """A group's part of a tensor over all padded queries [., d]."""
    return gathered[group.begin : group.begin + len(group.queries)].view(like.shape)


def _hidden(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[n, n] with n >= size: what is added to the score of each key (column) for each query (row)."""
    return _hidden_of(-(-size // 512) * 512, window, dtype, device)


@lru_cache(maxsize=4)
def _hidden_of(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    visible = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if window is not None:
        visible = visible.triu(1 - window)
    # The least number and not -inf: padding may see nothing at all, and its weights must be numbers.
    return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)


def _no_mask(**_: Any) -> None:
    """Packed attention needs none: it is causal within each sample by construction."""
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
