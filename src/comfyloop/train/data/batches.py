"""A micro-batch as one packed row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.data.examples import Example
from comfyloop.train.data.prefix_sharing import Segment, in_segments
from comfyloop.train.kernels.packing import Span


@dataclass(frozen=True)
class Packed:
    """Samples in one row of L tokens, with A answer tokens in all."""

    input_ids: Tensor  # [1, L]
    position_ids: Tensor  # [1, L], or [n, 1, L] where positions have n dimensions (M-RoPE)
    spans: tuple[Span, ...]  # what of the row sees what
    predicting: Tensor  # [A] places in the row whose state predicts an answer token, sample after sample
    labels: Tensor  # [A] those answer tokens
    showing: list[Example]  # samples whose images are in the row, in its order


def pack(examples: Sequence[Example], device: torch.device, *, share: bool) -> Packed:
    """Samples end to end.

    Args:
        share: What samples begin with in common is in the row once.
    """
    segments, paths = in_segments(examples, share=share)
    number = {segment: n for n, segment in enumerate(segments)}
    lengths = [len(segment) for segment in segments]
    places = dict(zip(segments, torch.split(torch.arange(sum(lengths)), lengths), strict=True))
    predicting = [
        torch.cat([places[segment] for segment in path])[example.answer - 1]
        for example, path in zip(examples, paths, strict=True)
    ]
    return Packed(
        input_ids=torch.cat([s.example.input_ids[s.begin : s.end] for s in segments])[None].to(device),
        position_ids=_positions(segments).to(device),
        spans=tuple(Span(len(s), tuple(number[before] for before in s.path[:-1])) for s in segments),
        predicting=torch.cat(predicting).to(device),
        labels=torch.cat([example.input_ids[example.answer] for example in examples]).to(device),
        showing=[s.example for s in segments if s.has_images],
    )


def _positions(segments: Sequence[Segment]) -> Tensor:
    """[1, L], or [n, 1, L] if any sample has positions of n dimensions; text has the same position in each."""
    parts = [s.example.positions[..., s.begin : s.end] for s in segments]
    dimensions = max((part.shape[:-1] for part in parts), key=len)
    return torch.cat([part.expand(*dimensions, -1) for part in parts], dim=-1).unsqueeze(-2)


def in_groups(examples: Sequence[Example], tokens: int) -> list[list[int]]:
    """Indices grouped for a pass without gradients, each group of at most `tokens` (or one sample).

    Neighbours stay together: they probably share a prefix.
    """
    groups: list[list[int]] = []
    room = 0
    for index, example in enumerate(examples):
        if len(example) > room:
            groups.append([])
            room = tokens
        groups[-1].append(index)
        room -= len(example)
    return groups
