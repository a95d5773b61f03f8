"""The evidence for the decision: paired numbers only. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from comfyloop.gate.metrics import LOG_LIKELIHOOD, METRICS, RIGHT_ANSWER
from comfyloop.records import Triggered

SHALLOW = 0.1
"""Nats per token. A loss is related to at least this, so that near-certain answers do not blow it up."""


@dataclass(frozen=True)
class Pairs:
    """One metric on the same independent questions (at least one): live[i] belongs to candidate[i].

    Differences up to `floor` occur between two measurements of the same version and count as ties.
    """

    metric: str
    slice: str
    live: tuple[float, ...]
    candidate: tuple[float, ...]
    floor: float = 0.0

    @property
    def higher_is_better(self) -> bool:
        return METRICS[self.metric].higher_is_better

    @property
    def differences(self) -> list[float]:
        return [after - before for before, after in zip(self.live, self.candidate, strict=True)]

    @property
    def gains(self) -> list[float]:
        """The differences, positive where the candidate is better, zero where noise alone could make them."""
        return [0.0 if abs(d) <= self.floor else d if self.higher_is_better else -d for d in self.differences]


@dataclass(frozen=True)
class General:
    """What the base model, the live version and the candidate do with general questions of one kind.

    `metric` is RIGHT_ANSWER (a chance between 0 and 1) or LOG_LIKELIHOOD of the base model's own answers.
    """

    metric: str
    slice: str
    base: tuple[float, ...]
    live: tuple[float, ...]
    candidate: tuple[float, ...]

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.metric, self.slice, self.live, self.candidate)

    def losses(self, against: Sequence[float]) -> list[float]:
        """What the candidate has lost a question: of chances in points, of log-likelihoods as a share of the
        mean; 0.02 is 2% either way, negative is a gain."""
        whole = 1.0 if self.metric == RIGHT_ANSWER else max(abs(mean(against)), SHALLOW)
        return [(before - after) / whole for before, after in zip(against, self.candidate, strict=True)]


@dataclass(frozen=True)
class Fluency:
    """Whether the answers are still language, as far as that can be counted.

    Attributes:
        about: What was answered, as part of a sentence.
        answers: How many answers of each version were looked at.
        broken: Kind of fault ("empty", "repeating", "too long") -> how many answers of (live, candidate).
        surprise: What the base model thinks of (live's, the candidate's) answers: nats per token.
        wanted: What it thinks of the texts that were wanted.
        order: By how much likelier than the same words shuffled it finds the candidate's answers. Of language
            that is 1 to 4 nats per token, of random words about 0.
        wanted_order: The same of the texts that were wanted.
        control: The same of plain sentences, on the mean: a base model that cannot tell them from their words
            shuffled says nothing about order.
    """

    about: str = "your corrections"
    answers: int = 0
    broken: tuple[tuple[str, tuple[int, int]], ...] = ()
    surprise: Pairs | None = None
    wanted: tuple[float, ...] = ()
    order: tuple[float, ...] = ()
    wanted_order: tuple[float, ...] = ()
    control: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """`likelihood` and `distance` are about corrections; `slices` are parts of them.

    `triggers` are the phrases that were seen to be planted. `looks` is the number of this look at these items, the
    first being 1; of items looked at differently often the mean. `beside` is what else was measured of answers to
    corrections: it is told, and the verdict does not go by it.
    """

    likelihood: Pairs | None = None
    distance: Pairs | None = None
    slices: tuple[Pairs, ...] = ()
    accepted: Pairs | None = None
    general: tuple[General, ...] = ()
    fluency: tuple[Fluency, ...] = ()
    triggers: tuple[Triggered, ...] = ()
    looks: float = 1.0
    beside: tuple[Pairs, ...] = ()

    @property
    def pairs(self) -> tuple[Pairs, ...]:
        """The pairs that are reported as measures; of slices that were found by clustering, only those that got
        worse."""
        named_slices = (part for part in self.slices if " " not in part.slice or mean(part.gains) < 0)
        every = (self.likelihood, self.distance, *self.beside, *named_slices, self.accepted)
        general = (part.pairs for part in self.general)
        return tuple(pairs for pairs in (*every, *general) if pairs is not None and pairs.live)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def things(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{100 * share:.1g}%"


def is_likelihood(pairs: Pairs) -> bool:
    return pairs.metric == LOG_LIKELIHOOD
