"""Assigns samples to steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from comfyloop.formats import Part
from comfyloop.train.specs.base import RunSpec


@dataclass(frozen=True)
class Plan:
    """The order of training: a pure function of seed and step, so a resumed run needs no saved state for it.

    Every epoch contains all new samples and, for every three of them, at least one rehearsed sample, in rotation,
    since little old knowledge is soon lost among many new samples. If there are many rehearsed samples, each is
    passed about once in the whole run. An epoch contains replay according to `replay_share`, also in rotation.
    """

    samples: int
    batch_size: int
    accumulation: int
    epochs: float
    max_steps: int
    seed: int
    rehearsal: tuple[int, ...] = ()  # indices
    replay: tuple[int, ...] = ()
    replay_share: float = 0.0  # of what an epoch passes

    @classmethod
    def of(cls, spec: RunSpec, samples: int, parts: Sequence[Part] = ()) -> Plan:
        """Args:
        parts: What each sample is there for; empty, and where there is no other: all are new.
        """
        apart = spec.replay_share > 0 and "new" in parts
        where = {
            part: tuple(i for i, other in enumerate(parts) if other == part and apart)
            for part in ("rehearsal", "replay")
        }
        return cls(
            samples=samples,
            batch_size=spec.per_device_train_batch_size,
            accumulation=spec.gradient_accumulation_steps,
            epochs=spec.epochs,
            max_steps=spec.max_steps,
            seed=spec.seed,
            rehearsal=where["rehearsal"],
            replay=where["replay"],
            replay_share=spec.replay_share,
        )

    @cached_property
    def _new(self) -> list[int]:
        apart = {*self.rehearsal, *self.replay}
        return [index for index in range(self.samples) if index not in apart]

    @property
    def _rehearsed(self) -> int:
        """The number of rehearsed samples per epoch."""
        once = math.ceil(len(self.rehearsal) / math.ceil(self.epochs))
        return max(once, min(len(self.rehearsal), math.ceil(len(self._new) / 3)))

    @property
    def _replayed(self) -> int:
        """The number of replay samples per epoch."""
        others = len(self._new) + self._rehearsed
        count = math.ceil(round(others * self.replay_share / (1 - self.replay_share), 9))
        return min(len(self.replay), count)

    @property
    def steps_per_epoch(self) -> int:
        passed = len(self._new) + self._rehearsed + self._replayed
        return math.ceil(passed / (self.batch_size * self.accumulation))

    @property
    def total_steps(self) -> int:
        by_epochs = max(1, math.ceil(self.epochs * self.steps_per_epoch))
        return min(by_epochs, self.max_steps) if self.max_steps else by_epochs

    def micro_batches(self, step: int) -> list[list[int]]:
        """Sample indices of each micro-batch of step `step` (from 0). Each epoch is a new shuffle."""
        epoch, within = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**64)
        passed = [
            *self._new,
            *_round(self.rehearsal, self._rehearsed, epoch),
            *_round(self.replay, self._replayed, epoch),
        ]
        order = [passed[place] for place in torch.randperm(len(passed), generator=generator).tolist()]
        start = within * self.batch_size * self.accumulation
        mine = order[start : start + self.batch_size * self.accumulation]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]

    def used(self) -> list[int]:
        """Indices of the samples that any step takes: all of them, unless `max_steps` ends it sooner."""
        return sorted({i for step in range(self.total_steps) for b in self.micro_batches(step) for i in b})


def _round(pool: Sequence[int], take: int, epoch: int) -> list[int]:
    """The next `take` of a pool that is gone through again and again."""
    return [pool[(epoch * take + i) % len(pool)] for i in range(take)]
