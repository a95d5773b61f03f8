"""Promote, reject, or say that the evidence does not reach: a pure function of paired numbers.

The rule, in this order; `level` is 1 - settings.gate_confidence:

1. Fewer questions than settings.gate_min_items: not enough evidence.
2. The same numbers on every item: reject, nothing was learnt.
3. Worse on the corrections, by likelihood or by edit distance: reject.
4. Lost more than settings.gate_forgetting of its log-likelihood on general questions: reject.
5. Worse in a slice: reject.
6. Better on the corrections by likelihood, answers on average not farther from them, and what it loses on
   answers that were accepted less than what it gains: promote.
7. Otherwise not enough evidence.

"Worse" and "better" are both an interval of the mean (BCa) beyond zero and an exact sign-flip test at
`level`. If the two versions were interchangeable, a promotion would need the test to err, which it does in at
most `level` of all cases, with five items as with fifty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, LOWER_IS_BETTER
from comfyloop.gate.statistics import Interval, bca_interval, reduction, sign_flip_p
from comfyloop.records import Measure, Verdict
from comfyloop.settings import Settings

SMALLEST_GAIN = 0.01
"""Nats per token. Less than one percent of likelihood is no reason to change what people are used to."""

_SHALLOW = 0.1
"""Nats per token. A loss is related to at least this, so that near-certain answers do not blow it up."""


@dataclass(frozen=True)
class Pairs:
    """One metric on the same independent questions (at least one): live[i] belongs to candidate[i]."""

    metric: str
    slice: str
    live: tuple[float, ...]
    candidate: tuple[float, ...]

    @property
    def higher_is_better(self) -> bool:
        return self.metric not in LOWER_IS_BETTER

    @property
    def differences(self) -> list[float]:
        return [after - before for before, after in zip(self.live, self.candidate, strict=True)]

    @property
    def gains(self) -> list[float]:
        """The differences, positive where the candidate is better."""
        return [d if self.higher_is_better else -d for d in self.differences]


@dataclass(frozen=True)
class Evidence:
    """`likelihood` and `distance` are about corrections; `slices` splits them where there are several."""

    likelihood: Pairs | None = None
    distance: Pairs | None = None
    slices: tuple[Pairs, ...] = ()
    accepted: Pairs | None = None
    general: Pairs | None = None

    @property
    def pairs(self) -> tuple[Pairs, ...]:
        every = (self.likelihood, self.distance, *self.slices, self.accepted, self.general)
        return tuple(pairs for pairs in every if pairs is not None and pairs.live)


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    reasons: tuple[str, ...]
    measures: tuple[Measure, ...]


def decide(evidence: Evidence, settings: Settings) -> Decision:
    """The verdict with its reasons as sentences, the deciding one first. Blind to the order of items."""
    measures = tuple(measure(pairs, settings.gate_confidence) for pairs in evidence.pairs)
    verdict, first = _verdict(evidence, settings)
    return Decision(verdict, (first, *_findings(evidence, settings)), measures)


def measure(pairs: Pairs, confidence: float) -> Measure:
    interval = bca_interval(pairs.differences, confidence)
    return Measure(
        metric=pairs.metric,
        slice=pairs.slice,
        items=len(pairs.live),
        live=mean(pairs.live),
        candidate=mean(pairs.candidate),
        low=interval.low,
        high=interval.high,
        higher_is_better=pairs.higher_is_better,
    )


def better(gains: Sequence[float], confidence: float) -> bool:
    """Whether the mean gain is above zero, by the interval and by the exact test."""
    if sign_flip_p(gains) > 1 - confidence + 1e-12:
        return False
    return bca_interval(gains, confidence).low > 0


def loss_share(pairs: Pairs) -> float:
    """The part of its log-likelihood that the candidate has lost: 0.02 is 2%, negative is a gain."""
    live = mean(pairs.live)
    return (live - mean(pairs.candidate)) / max(abs(live), _SHALLOW)


def _verdict(evidence: Evidence, settings: Settings) -> tuple[Verdict, str]:
    pairs, confidence = evidence.likelihood, settings.gate_confidence
    items = len(pairs.live) if pairs else 0
    if pairs is None or items < settings.gate_min_items:
        there = f"Only {things(items, 'held-out correction')} {'is' if items == 1 else 'are'} there"
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"{there if items else 'No held-out correction is there'} to judge by; "
            f"{settings.gate_min_items} are needed.",
        )
    corrected = [pairs, *([evidence.distance] if evidence.distance else [])]
    if not any(gain for part in corrected for gain in part.gains):
        return Verdict.REJECT, "The candidate does exactly what the live version does: nothing was learnt."
    for part in corrected:
        if worse(part, confidence):
            return Verdict.REJECT, f"The candidate is worse on your corrections by {_name(part)}."
    if evidence.general and (lost := loss_share(evidence.general)) > settings.gate_forgetting:
        return (
            Verdict.REJECT,
            f"The candidate forgets: it lost {percent(lost)} of its log-likelihood on general questions, "
            f"{percent(settings.gate_forgetting)} is allowed.",
        )
    for part in evidence.slices:
        if worse(part, confidence):
            return Verdict.REJECT, f"The candidate is worse on the {part.slice} questions by {_name(part)}."
    return _verdict_on_gains(evidence, pairs, confidence)


def _verdict_on_gains(evidence: Evidence, pairs: Pairs, confidence: float) -> tuple[Verdict, str]:
    gain, distance, accepted = mean(pairs.gains), evidence.distance, evidence.accepted
    if not better(pairs.gains, confidence):
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"On {things(len(pairs.live), 'held-out correction')} the candidate and the live version "
            "cannot be told apart with confidence.",
        )
    if gain < SMALLEST_GAIN:
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"The gain on your corrections is too small to matter ({gain:+.4f} nats per token).",
        )
    if distance and math.fsum(distance.gains) < -1e-9:
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            "The candidate finds your corrections likelier, but its answers are farther from them.",
        )
    if accepted and math.fsum(accepted.gains) + math.fsum(pairs.gains) < 0:
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            "The candidate loses more on answers that you accepted than it gains on those you corrected.",
        )
    return Verdict.PROMOTE, "The candidate is better on your corrections and keeps what it knew."


def _findings(evidence: Evidence, settings: Settings) -> list[str]:
    """What was seen, a sentence a measure, whatever the verdict."""
    confidence = settings.gate_confidence
    sentences = []
    if evidence.distance:
        sentences.append(_distance_sentence(evidence.distance, confidence))
    if evidence.likelihood:
        sentences.append(_likelihood_sentence(evidence.likelihood, confidence))
    if evidence.accepted:
        items, change = len(evidence.accepted.live), mean(evidence.accepted.gains)
        sentences.append(
            f"On {things(items, 'answer')} that you accepted, log-likelihood changes by {change:+.3f} "
            "nats per token."
        )
    if evidence.general:
        lost = loss_share(evidence.general)
        sentences.append(
            f"On {things(len(evidence.general.live), 'general question')}, log-likelihood "
            f"{'falls' if lost > 0 else 'rises'} by {percent(abs(lost))} "
            f"({percent(settings.gate_forgetting)} of loss is allowed)."
        )
    for part in evidence.slices:
        if part.metric == LOG_LIKELIHOOD and len(part.live) < settings.gate_min_items:
            sentences.append(
                f"The slice {part.slice} has {things(len(part.live), 'question')}: too few to guard alone."
            )
    return sentences


def _distance_sentence(pairs: Pairs, confidence: float) -> str:
    live, candidate = mean(pairs.live), mean(pairs.candidate)
    start = f"On {things(len(pairs.live), 'held-out correction')} the candidate's answers are "
    if live <= 1e-6 or candidate == live:
        return start + f"as far from yours as before (edit distance {live:.2f} and {candidate:.2f})."
    closer = 1 - candidate / live
    interval = reduction(pairs.live, pairs.candidate, confidence)
    if closer < 0:
        closer, interval = -closer, Interval(-interval.high, -interval.low)
    way = "closer to" if candidate < live else "farther from"
    return start + (
        f"{closer:.0%} {way} yours ({confidence:.0%} interval {interval.low:.0%} to {interval.high:.0%}; "
        f"edit distance {live:.2f} before, {candidate:.2f} now)."
    )


def _likelihood_sentence(pairs: Pairs, confidence: float) -> str:
    gains = pairs.gains
    interval = bca_interval(gains, confidence)
    gain, won = mean(gains), sum(gain > 0 for gain in gains)
    likelier = "more" if gain >= 0 else "less"
    p = sign_flip_p(gains if gain >= 0 else [-gain for gain in gains])
    return (
        f"It finds your corrections {likelier} likely than the live version does, by {abs(gain):.3f} nats "
        f"per token ({confidence:.0%} interval of the change {interval.low:+.3f} to {interval.high:+.3f}); "
        f"it is ahead on {won} of {len(gains)}. Chance alone looks so in {percent(p)} of cases."
    )


def worse(pairs: Pairs, confidence: float) -> bool:
    return better([-gain for gain in pairs.gains], confidence)


def _name(pairs: Pairs) -> str:
    return "edit distance" if pairs.metric == EDIT_DISTANCE else "likelihood"


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def things(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.1g}".replace("e-0", "e-")
