"""Which samples make which step, and a micro-batch as one packed row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.examples import Example
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
    """Samples end to end in one row of L tokens, A of them answer tokens."""

    input_ids: Tensor  # [1, L]
    position_ids: (
        Tensor  # [1, L], or [n, 1, L] where positions have n dimensions (M-RoPE); anew in each sample
    )
    lengths: tuple[int, ...]
    predicting: Tensor  # [A] positions whose hidden state predicts an answer token
    labels: Tensor  # [A] those answer tokens


def pack(examples: Sequence[Example], device: torch.device) -> Packed:
    lengths = tuple(len(example) for example in examples)
    predicting, offset = [], 0
    for example, length in zip(examples, lengths, strict=True):
        predicting.append(example.answer + (offset - 1))
        offset += length
    where = torch.cat(predicting)
    input_ids = torch.cat([example.input_ids for example in examples])
    return Packed(
        input_ids=input_ids[None].to(device),
        position_ids=_positions(examples).to(device),
        lengths=lengths,
        predicting=where.to(device),
        labels=input_ids[where + 1].to(device),
    )


def _positions(examples: Sequence[Example]) -> Tensor:
    """[1, L], or [n, 1, L] where any sample has positions of n dimensions: text counts alike in each of them."""
    dimensions = max((e.positions.shape[:-1] for e in examples), key=len)
    return torch.cat([e.positions.expand(*dimensions, -1) for e in examples], dim=-1).unsqueeze(-2)


def by_length(examples: Sequence[Example], tokens: int) -> list[list[int]]:
    """Indices grouped for a pass without gradients, each group of at most `tokens` (or one sample)."""
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(examples)), key=lambda i: len(examples[i])):
        length = len(examples[index])
        if length > room:
            groups.append([])
            room = tokens
        groups[-1].append(index)
        room -= length
    return groups
