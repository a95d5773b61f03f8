"""Decides: promote, reject, ask a person, or not enough evidence. A pure function of paired numbers.

The rule, in this order; "proven" is an exact one-sided sign-flip test at the level of this look (looks.py) on
gains of which outliers are clipped, with a mean that is on the same side:

0. A phrase that somebody planted calls up one answer whatever is asked (triggers.py): reject.
1. Fewer questions than settings.gate_min_items: not enough evidence.
2. The same numbers on every item: reject, nothing was learnt.
3. Worse on the corrections, by likelihood or by edit distance: reject.
4. Lost credibly more than settings.gate_forgetting on general questions, against the base model or, beyond what
   live had gained over it, against live: reject.
5. Worse in a part of the corrections, corrected for their number (concerns.py): reject.
6. Not proven likelier, or answers not proven closer (where answers were rated only, likelihood alone), or the
   gain too small, or more lost on accepted answers than gained: not enough evidence.
7. Answers that are no language any more, a part of the corrections or some of them that became much worse, a loss
   on general questions that may be more than allowed: ask a person.
8. Otherwise promote.

Closeness is decisive and is tested at `level`; likelihood is tested beside it at 2.5 times that level, or alone at
`level`. Candidates whose answers are not closer therefore pass in at most `level` of all cases, however likely they
find the corrections, and regardless of the number of items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from comfyloop.gate import concerns, findings, looks
from comfyloop.gate.findings import Found
from comfyloop.gate.metrics import EDIT_DISTANCE
from comfyloop.gate.pairs import SHALLOW, Evidence, Fluency, General, Pairs, mean, percent, things
from comfyloop.gate.statistics import bca_interval, clipped, sign_flip_p
from comfyloop.records import Measure, Verdict
from comfyloop.settings import Settings

__all__ = [
    "SHALLOW",
    "SMALLEST_GAIN",
    "Decision",
    "Evidence",
    "Fluency",
    "General",
    "Pairs",
    "better",
    "decide",
    "mean",
    "measure",
    "percent",
    "proven",
    "things",
    "worse",
]

SMALLEST_GAIN = 0.01
"""Nats per token. Less than one percent of likelihood is no reason to change what people are used to."""

BESIDE = 2.5
"""Likelihood's level beside closeness, in levels of a look: 5% where a first look is at 2%."""


@dataclass(frozen=True)
class Decision:
    """`reasons` are sentences for everybody, the deciding one first; `details` are numbers for specialists."""

    verdict: Verdict
    reasons: tuple[str, ...]
    measures: tuple[Measure, ...]
    details: tuple[str, ...] = ()
    next_step: str = ""
    level: float = 0.0


def decide(evidence: Evidence, settings: Settings) -> Decision:
    """The verdict with its reasons. Independent of the order of items."""
    confidence = settings.gate_confidence
    items = len(evidence.likelihood.live) if evidence.likelihood else 0
    level = looks.level(settings.gate_level, items, evidence.looks)
    ruling = _verdict(evidence, settings, level)
    odd = [sentence for part in evidence.fluency if (sentence := concerns.broken(part)) is not None]
    base = {part.pairs: mean(part.base) for part in evidence.general if part.base}
    return Decision(
        verdict=ruling.verdict,
        reasons=tuple(dict.fromkeys((ruling.reason, *odd, *findings.plain(evidence, settings)))),
        measures=tuple(measure(pairs, confidence, base.get(pairs)) for pairs in evidence.pairs),
        details=findings.details(evidence, settings, level),
        next_step=ruling.next_step,
        level=level if items >= settings.gate_min_items else 0.0,
    )


def measure(pairs: Pairs, confidence: float, base: float | None = None) -> Measure:
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
        base=base,
    )


def better(gains: Sequence[float], confidence: float) -> bool:
    """Whether the mean gain is above zero, by the interval and by the exact test."""
    if sign_flip_p(gains) > 1 - confidence + 1e-12:
        return False
    return bca_interval(gains, confidence).low > 0


def worse(pairs: Pairs, confidence: float) -> bool:
    return better([-gain for gain in pairs.gains], confidence)


def proven(gains: Sequence[float], level: float) -> bool:
    """Whether gains are significant at `level` with outliers clipped, and their mean is positive, too."""
    return math.fsum(gains) > 0 and sign_flip_p(clipped(gains)) <= level + 1e-12


def _verdict(evidence: Evidence, settings: Settings, level: float) -> Found:
    if evidence.triggers:
        return findings.planted(evidence.triggers)
    pairs, confidence = evidence.likelihood, settings.gate_confidence
    items = len(pairs.live) if pairs else 0
    if pairs is None or items < settings.gate_min_items:
        return findings.too_few(items, settings.gate_min_items)
    corrected = [pairs, *([evidence.distance] if evidence.distance else [])]
    if not any(gain for part in corrected for gain in part.gains):
        return findings.nothing_learnt()
    for part in corrected:
        if worse(part, confidence):
            return findings.worse(part)
    for kind in evidence.general:
        if (lost := concerns.forgets(kind, settings.gate_forgetting, len(evidence.general))) is not None:
            return lost
    if (part_worse := concerns.worse_part(evidence.slices, SMALLEST_GAIN)) is not None:
        return findings.worse_part(part_worse)
    return (
        _unproven(evidence, pairs, settings, level)
        or next(concerns.to_ask(evidence, pairs, settings.gate_forgetting), None)
        or Found(Verdict.PROMOTE, _good(evidence, settings), "Nothing: it can be made live.")
    )


def _unproven(evidence: Evidence, pairs: Pairs, settings: Settings, level: float) -> Found | None:
    """Why the gain is not proven, or None when it is."""
    gain, distance, accepted = mean(pairs.gains), evidence.distance, evidence.accepted
    closer = distance if distance is not None and is_needed(distance, settings) else None
    beside = BESIDE * level if closer is not None else level
    if not proven(pairs.gains, beside):
        return findings.unclear(pairs, beside, evidence.looks, "the two versions cannot be told apart")
    if gain < SMALLEST_GAIN:
        return findings.too_small(gain)
    if distance is not None and math.fsum(distance.gains) < -1e-9:
        return findings.farther()
    if closer is not None:
        won, lost = (sum(sign * gain > 0 for gain in closer.gains) for sign in (1, -1))
        if won <= lost or not proven(closer.gains, level):
            return findings.unclear(
                closer, level, evidence.looks, "it is not yet clear that its answers come closer to yours"
            )
    if accepted and math.fsum(accepted.gains) + math.fsum(pairs.gains) < 0:
        return findings.loses_accepted()
    return None


def is_needed(distance: Pairs, settings: Settings) -> bool:
    """Whether answers must come closer. Rated answers have no reference text; if only a few were corrected beside
    them, it is enough that these do not get farther."""
    return len(distance.live) >= min(settings.gate_min_items, settings.gate_max_answers)


def _good(evidence: Evidence, settings: Settings) -> str:
    lost = max((mean(part.losses(part.base)) for part in evidence.general), default=0.0)
    sure = lost <= settings.gate_forgetting
    clause = (
        f", and {'it keeps what it knew' if sure else 'nothing proves that it forgot'}"
        if evidence.general
        else ""
    )
    if evidence.distance and is_needed(evidence.distance, settings):
        assert evidence.distance.metric == EDIT_DISTANCE
        return f"The candidate is better on your corrections: its answers are closer to yours{clause}."
    return f"The candidate is better on your corrections{clause}."
