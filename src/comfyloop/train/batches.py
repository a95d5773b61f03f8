"""Which samples make which step, and a micro-batch as one packed row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.beginnings import Segment, in_segments
from comfyloop.train.examples import Example
from comfyloop.train.packing import Span
from comfyloop.train.spec import RunSpec


@dataclass(frozen=True)
class Plan:
    """The order of training: a pure function of seed and step, so a resumed run needs no memory of it."""

    samples: int
    batch_size: int
    accumulation: int
    epochs: float
    max_steps: int
    seed: int

    @classmethod
    def of(cls, spec: RunSpec, samples: int) -> Plan:
        return cls(
            samples=samples,
            batch_size=spec.per_device_train_batch_size,
            accumulation=spec.gradient_accumulation_steps,
            epochs=spec.epochs,
            max_steps=spec.max_steps,
            seed=spec.seed,
        )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.samples / (self.batch_size * self.accumulation))

    @property
    def total_steps(self) -> int:
        by_epochs = max(1, math.ceil(self.epochs * self.steps_per_epoch))
        return min(by_epochs, self.max_steps) if self.max_steps else by_epochs

    def micro_batches(self, step: int) -> list[list[int]]:
        """Sample indices of each micro-batch of step `step` (from 0). Each epoch is a new shuffle."""
        epoch, within = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.samples, generator=generator).tolist()
        start = within * self.batch_size * self.accumulation
        mine = order[start : start + self.batch_size * self.accumulation]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]

    def used(self) -> list[int]:
        """Indices of the samples that any step takes: all of them, unless `max_steps` ends it sooner."""
        if self.total_steps >= self.steps_per_epoch:
            return list(range(self.samples))
        return sorted(i for step in range(self.total_steps) for b in self.micro_batches(step) for i in b)


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
    """[1, L], or [n, 1, L] where any sample has positions of n dimensions: text counts alike in each of them."""
    parts = [s.example.positions[..., s.begin : s.end] for s in segments]
    dimensions = max((part.shape[:-1] for part in parts), key=len)
    return torch.cat([part.expand(*dimensions, -1) for part in parts], dim=-1).unsqueeze(-2)


def in_groups(examples: Sequence[Example], tokens: int) -> list[list[int]]:
    """Indices grouped for a pass without gradients, each group of at most `tokens` (or one sample).

    Neighbours stay together: they are likely to begin alike.
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
