"""What one turn learns: all that is new, and a bounded part of what was learned before.

A turn costs what is new. Of what the version that it goes on from has learned, as much is rehearsed as `rehearsal`
allows, chosen so that every kind of question, every author and every age is in it, and in each of these first what
that version still does worst. A consolidation learns everything from the base models, up to a bound, by the same
choice. Pure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from comfyloop.curate.authors import ALWAYS, over_the_cap
from comfyloop.records import Sample
from comfyloop.settings import Settings

AGES = 4
"""Spans of arrival that a rehearsal draws from alike."""

DEV_SHARE, DEV_LEAST = 1 / 6, 4
"""Of the new samples, the share kept back to tell when to stop; none where that would be fewer than so many."""


@dataclass(frozen=True)
class Lesson:
    """A turn's training samples, in order of arrival each."""

    new: tuple[Sample, ...]
    rehearsal: tuple[Sample, ...] = ()
    dev: tuple[Sample, ...] = ()  # new, but kept back to tell when to stop; learned in a later turn
    waiting: tuple[Sample, ...] = ()  # new, but more of one author's than a turn may have

    @property
    def train(self) -> tuple[Sample, ...]:
        return (*self.new, *self.rehearsal)


def choose(
    train: Sequence[Sample],
    learned: Collection[str],
    *,
    rehearsal: int,
    afresh: bool = False,
    most: int = 0,
    share: float = 1.0,
    least: int = ALWAYS,
    losses: Mapping[str, float] | None = None,
) -> Lesson:
    """What of a project's training samples the next turn learns.

    Args:
        train: All of them, in order of arrival, of the kinds that are trained.
        learned: Ids of the feedback that the live version carries.
        rehearsal: Most samples to rehearse.
        afresh: Start from the base models and learn everything, not on from the live version.
        most: Most samples to learn from the base models; 0: all.
        share, least: How much of what no version has learned yet may be one author's: see `over_the_cap`.
        losses: What is known of how badly that version still does on samples, by their ids, in nats a token.
    """
    known = frozenset(learned)
    fresh = [sample for sample in train if not known.issuperset(sample.feedback)]
    waiting = tuple(over_the_cap(fresh, share, least))
    waits = {id(sample) for sample in waiting}
    if afresh:
        taken = [sample for sample in train if id(sample) not in waits]
        return Lesson(new=tuple(in_practice(taken, most or len(taken), losses or {})), waiting=waiting)
    fresh = [sample for sample in fresh if id(sample) not in waits]
    old = [sample for sample in train if known.issuperset(sample.feedback)]
    back = _kept_back(fresh)
    return Lesson(
        new=tuple(sample for sample in fresh if sample.group not in back),
        rehearsal=tuple(in_practice(old, rehearsal, losses or {})),
        dev=tuple(sample for sample in fresh if sample.group in back),
        waiting=waiting,
    )


def epochs_of(new: int, settings: Settings) -> float:
    """Passes over so many new samples: about 120 looks at them in all, where no setting says otherwise."""
    return settings.epochs or min(max(round(120 / max(new, 1)), 2), 20)


def in_practice(samples: Sequence[Sample], most: int, losses: Mapping[str, float]) -> list[Sample]:
    """At most so many samples, in order of arrival: from each slice, author and age in turn, hardest first.

    What is not known to be hard comes in an order of its own that no arrival moves.
    """
    if len(samples) <= most:
        return list(samples)
    strata: dict[tuple[str, str, int], list[int]] = {}
    for place, sample in enumerate(samples):
        age = place * AGES // len(samples)
        strata.setdefault((sample.slice, sample.author, age), []).append(place)
    queues = [
        sorted(places, key=lambda place: (-losses.get(samples[place].id, 0.0), _shuffled(samples[place])))
        for _, places in sorted(strata.items())
    ]
    chosen: list[int] = []
    for rank in range(max(map(len, queues))):
        for queue in queues:
            if rank < len(queue) and len(chosen) < most:
                chosen.append(queue[rank])
    return [samples[place] for place in sorted(chosen)]


def _kept_back(fresh: Sequence[Sample]) -> set[str]:
    groups = list(dict.fromkeys(sample.group for sample in fresh))
    share = math.floor(len(groups) * DEV_SHARE)
    if share < DEV_LEAST:
        return set()
    return set(sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())[:share])


def _shuffled(sample: Sample) -> bytes:
    return hashlib.sha256(sample.id.encode()).digest()
