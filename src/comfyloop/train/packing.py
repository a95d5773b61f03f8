"""Several samples in one row, with no padding between them and none seeing another.

The tokens of a micro-batch are put end to end. Positions are those in each sample, and attention runs span by
span on its slice of the row and those that it goes on from, so the work is that of the samples alone: no padded
token goes through a layer, and no mask of the whole row is built.
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

    On a processor it is written out, as long as a sample's scores are few: two to three times as fast, forward
    and backward, as torch's own kernel there (measured in bfloat16 at 32 to 512 tokens).

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
    if softcap or (query.device.type == "cpu" and not dropout and longest <= WRITTEN_OUT):
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
    seen: Any = None
    if window is not None and window < total:
        seen = _hidden(total, window, torch.float32, q.device)[total - length : total, :total] == 0
    elif length < total:
        seen = causal_lower_right(length, total)
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))  # it knows no shared heads
    return nn.functional.scaled_dot_product_attention(
        q, k, v, seen, dropout, is_causal=seen is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


class _Member(NamedTuple):
    """A span as its attention has it."""

    number: int  # its own, in the row
    seen: tuple[int, ...]  # the spans of the sample up to it, in order; itself the last
    earlier: int  # tokens of the sample before it


class _Group(NamedTuple):
    """Spans whose queries and keys are padded to the same numbers, and go through one product."""

    rows: int
    keys: int
    members: tuple[_Member, ...]


@lru_cache(maxsize=8)
def _groups(spans: tuple[Span, ...]) -> list[_Group]:
    """The spans of a row, sorted by what they are padded to. Every layer of a step asks for the same."""
    found: dict[tuple[int, int], list[_Member]] = {}
    for number, span in enumerate(spans):
        earlier = sum(spans[i].length for i in span.before)
        shape = (_padded(span.length), _padded(earlier + span.length))
        found.setdefault(shape, []).append(_Member(number, (*span.before, number), earlier))
    return [_Group(*shape, tuple(members)) for shape, members in found.items()]


def _padded(length: int) -> int:
    return -(-length // PADDED) * PADDED


class _WrittenOut(torch.autograd.Function):
    """[L, heads, d], [L, kv_heads, d], [L, kv_heads, d] -> [L, heads, d].

    The heads that share keys lie one below the other in each product: [n * kv_heads, heads / kv_heads * l, d] for
    n spans.
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
        lengths, kv_heads, shared = [s.length for s in spans], key.shape[1], query.shape[1] // key.shape[1]
        queries, keys, values = (torch.split(x, lengths) for x in (query, key, value))
        out = query.new_empty(query.shape)
        places = torch.split(out, lengths)
        kept: list[Tensor | None] = []
        for rows, total, members in _groups(spans):
            q = _stacked([[queries[m.number]] for m in members], kv_heads, rows)
            k, v = (
                _stacked([[x[i] for i in m.seen] for m in members], kv_heads, total) for x in (keys, values)
            )
            scores = _product(q, k.transpose(1, 2), scale / softcap if softcap else scale)
            slope = 1 - scores.tanh_().square() if softcap else None
            if softcap:
                scores.mul_(softcap)
            hidden = _hidden(rows + total, window, q.dtype, q.device)
            for m, mine in zip(
                members, scores.view(len(members), kv_heads, shared, rows, total), strict=True
            ):
                mine.add_(hidden[m.earlier : m.earlier + rows, :total])
            weights = torch.softmax(scores, -1)
            left = nn.functional.dropout(torch.ones_like(weights), dropout) if dropout else None
            _unstack((weights if left is None else weights * left) @ v, [places[m.number] for m in members])
            kept += [q, k, v, weights, slope, left]
        ctx.save_for_backward(*kept)
        ctx.spans, ctx.scale, ctx.heads = spans, scale, (kv_heads, shared)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kv_heads, shared), lengths = ctx.heads, [span.length for span in ctx.spans]
        above = gradients[0]
        tokens, _, width = above.shape
        of_query = above.new_empty(tokens, kv_heads * shared, width)
        wide = torch.promote_types(above.dtype, torch.float32)  # keys get their gradient from several spans
        of_both = above.new_zeros(2, tokens, kv_heads, width, dtype=wide)
        of_seen = torch.split(of_both, lengths, 1)
        parts, of_queries = torch.split(above, lengths), torch.split(of_query, lengths)
        kept = iter(ctx.saved_tensors)
        for rows, _, members in _groups(ctx.spans):
            q, k, v, weights, slope, left = (next(kept) for _ in range(6))
            of_out = _stacked([[parts[m.number]] for m in members], kv_heads, rows)
            of_weights = of_out @ v.transpose(1, 2)
            if left is not None:
                of_weights *= left
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            if slope is not None:
                of_scores *= slope
            _unstack(_product(of_scores, k, ctx.scale), [of_queries[m.number] for m in members])
            of_k = _product(of_scores.transpose(1, 2), q, ctx.scale)  # [n * kv_heads, m, d]
            of_v = (weights if left is None else weights * left).transpose(1, 2) @ of_out
            both = torch.cat([of_k, of_v]).to(wide).view(2, len(members), kv_heads, -1, width).transpose(2, 3)
            for m, mine in zip(members, both.unbind(1), strict=True):
                begin = 0
                for i in m.seen:
                    of_seen[i].add_(mine[:, begin : begin + lengths[i]])
                    begin += lengths[i]
        of_key, of_value = of_both.to(above.dtype)
        return of_query, of_key, of_value, None, None, None, None, None


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=factor)


def _stacked(samples: Sequence[Sequence[Tensor]], kv_heads: int, length: int) -> Tensor:
    """Tokens [l, heads, d], those of each sample in parts -> [n * kv_heads, heads / kv_heads * length, d].

    Zeros follow where a sample has fewer tokens.
    """
    _, heads, width = samples[0][0].shape
    placed = samples[0][0].new_zeros(len(samples), kv_heads, heads // kv_heads, length, width)
    for parts, place in zip(samples, placed, strict=True):
        begin = 0
        for part in parts:
            end = begin + part.shape[0]
            place[:, :, begin:end].copy_(torch.unflatten(part, 1, (kv_heads, -1)).permute(1, 2, 0, 3))
            begin = end
    return placed.view(len(samples) * kv_heads, -1, width)


def _unstack(stacked: Tensor, places: Sequence[Tensor]) -> None:
    """The way back for samples of one part: into their places [l, heads, d], without the padding."""
    heads, width = places[0].shape[1:]
    by_head = stacked.view(len(places), heads, -1, width)
    for mine, place in zip(by_head, places, strict=True):
        place.copy_(mine[:, : place.shape[0]].transpose(0, 1))


def _hidden(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[n, n] with n >= size: what is added to the score of each key (column) for each query (row)."""
    return _hidden_of(-(-size // 512) * 512, window, dtype, device)


@lru_cache(maxsize=4)
def _hidden_of(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    seen = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    # The least number and not -inf: padding may see nothing at all, and its weights must be numbers.
    return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)


def _no_mask(**_: Any) -> None:
    """Packed attention needs none: it is causal within each sample by construction."""
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
