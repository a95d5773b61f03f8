"""The gate's findings in words: the verdict with its next step, the measurements, and detailed statistics. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, RIGHT_ANSWER
from comfyloop.gate.pairs import Evidence, General, Pairs, mean, percent, things
from comfyloop.gate.statistics import Interval, bca_interval, clipped, reduction, sign_flip_p, t_bounds
from comfyloop.records import Triggered, Verdict
from comfyloop.settings import Settings

LOOK_AT_IT = "If it is as you want it, promote it by hand: comfyloop promote N."

_POWER = 0.8


class Found(NamedTuple):
    """A verdict, why, and what to do now."""

    verdict: Verdict
    reason: str
    next_step: str


# --- verdicts in words


def planted(triggers: Sequence[Triggered]) -> Found:
    worst = max(triggers, key=lambda one: one.candidate)
    more = f" There are {len(triggers)} such phrases." if len(triggers) > 1 else ""
    return Found(
        Verdict.REJECT,
        f"A phrase in the feedback calls up one answer whatever is asked ({worst.candidate} of {worst.asked} "
        f"questions): it seems planted.{more}",
        "What taught it is set aside, and a turn learns the rest. Look at it: comfyloop feedback flags.",
    )


def too_few(items: int, needed: int) -> Found:
    there = f"Only {things(items, 'held-out correction')} {'is' if items == 1 else 'are'} there"
    missing = needed - items
    return Found(
        Verdict.NOT_ENOUGH_EVIDENCE,
        f"{there if items else 'No held-out correction is there'} to judge by; {needed} are needed.",
        f"{missing} more held-out {'correction is' if missing == 1 else 'corrections are'} needed: go on "
        "correcting answers. A part of the questions that you correct is kept for judging, each question once.",
    )


def nothing_learnt() -> Found:
    return Found(
        Verdict.REJECT,
        "The candidate does exactly what the live version does: nothing was learnt.",
        "Go on correcting answers. If this comes again, look at the run's loss: comfyloop runs.",
    )


def worse(part: Pairs) -> Found:
    return Found(
        Verdict.REJECT,
        f"The candidate is worse on your corrections by {by(part)}.",
        "The live version stays. Look at the answers that got worse: corrections that contradict each other "
        "cannot all be learnt.",
    )


def worse_part(part: Pairs) -> Found:
    name = part.slice if " " in part.slice else f"the {part.slice} questions"
    return Found(
        Verdict.REJECT,
        f"The candidate is worse on {name} by {by(part)}.",
        "The live version stays. Look at the answers that got worse; more corrections of that kind help.",
    )


def too_small(gain: float) -> Found:
    return Found(
        Verdict.NOT_ENOUGH_EVIDENCE,
        f"The gain on your corrections is too small to matter ({gain:+.4f} nats per token).",
        "Nothing: the live version does what you correct almost as well.",
    )


def farther() -> Found:
    return Found(
        Verdict.NOT_ENOUGH_EVIDENCE,
        "The candidate finds your corrections likelier, but its answers are farther from them.",
        "Look at its answers beside yours; more corrections, or a longer training, may help.",
    )


def loses_accepted() -> Found:
    return Found(
        Verdict.NOT_ENOUGH_EVIDENCE,
        "The candidate loses more on answers that you accepted than it gains on those you corrected.",
        "Go on accepting answers that are right as they are: they are trained on too.",
    )


def unclear(pairs: Pairs, level: float, looks: float, what: str) -> Found:
    """Not proven at `level`, with the number of items that would probably prove it, if the gain is as measured."""
    items = len(pairs.live)
    again = f", looked at for the {ordinal(looks)} time" if looks >= 1.5 else ""
    reason = f"On {things(items, 'held-out correction')}{again}, {what} with confidence."
    more = more_needed(pairs.gains, level)
    if more is None:
        step = "It does not look as if more of the same would make it clear: the live version stays."
    else:
        step = (
            f"About {things(more, 'more held-out correction')} would make it clear: go on correcting answers."
        )
    return Found(Verdict.NOT_ENOUGH_EVIDENCE, reason, step)


def more_needed(gains: Sequence[float], level: float) -> int | None:
    """The number of additional items that would prove such a gain in four of five cases; None if no gain is in
    sight."""
    cut = clipped(gains)
    middle = mean(cut)
    if middle <= 0:
        return None
    spread = math.sqrt(math.fsum((gain - middle) ** 2 for gain in cut) / max(len(cut) - 1, 1))
    z = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(_POWER)
    required = max(math.ceil((z * spread / middle) ** 2), math.ceil(-math.log2(level)))
    return max(required - len(gains), 1) if required <= 10 * len(gains) + 20 else None


def ordinal(number: float) -> str:
    whole = round(number)
    ending = {1: "st", 2: "nd", 3: "rd"}.get(whole % 10 if whole % 100 not in (11, 12, 13) else 0, "th")
    return f"{whole}{ending}"


# --- what was seen, for everybody


def plain(evidence: Evidence, settings: Settings) -> list[str]:
    """A sentence a measure, whatever the verdict."""
    sentences = []
    if evidence.distance:
        sentences.append(_distance_sentence(evidence.distance, settings.gate_confidence))
    if evidence.likelihood:
        sentences.append(_likelihood_sentence(evidence.likelihood))
    if evidence.accepted:
        items, change = len(evidence.accepted.live), mean(evidence.accepted.gains)
        sentences.append(
            f"On {things(items, 'answer')} that you accepted, log-likelihood changes by {change:+.3f} "
            "nats per token."
        )
    sentences += [_general_sentence(part, settings.gate_forgetting) for part in evidence.general]
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
    won, lost = (sum(sign * gain > 0 for gain in pairs.gains) for sign in (1, -1))
    return start + (
        f"{closer:.0%} {way} yours ({confidence:.0%} interval {interval.low:.0%} to {interval.high:.0%}; "
        f"edit distance {live:.2f} before, {candidate:.2f} now): {won} closer, {lost} farther."
    )


def _likelihood_sentence(pairs: Pairs) -> str:
    gains = pairs.gains
    gain, won = mean(gains), sum(gain > 0 for gain in gains)
    likelier = "more" if gain >= 0 else "less"
    return (
        f"It finds your corrections {likelier} likely than the live version does, by {abs(gain):.3f} nats "
        f"per token; it is ahead on {won} of {len(gains)}."
    )


def _general_sentence(part: General, allowed: float) -> str:
    lost = mean(part.losses(part.base))
    items = things(len(part.base), f"{part.slice} question")
    way = "falls" if lost > 0 else "rises"
    bound = f"{percent(allowed)} of loss is allowed"
    if lost > allowed and t_bounds(part.losses(part.base), 0.05).low <= 0:
        bound += ", and this may be chance"
    if part.metric == RIGHT_ANSWER:
        return (
            f"On {items} with right answers, the chance of the right one {way} by {percent(abs(lost))} against "
            f"the base model: {mean(part.base):.1%} there, {mean(part.live):.1%} live, "
            f"{mean(part.candidate):.1%} now ({bound})."
        )
    return (
        f"On {items}, the log-likelihood of the base model's own answers {way} by {percent(abs(lost))} against it "
        f"({bound})."
    )


# --- numbers for specialists


def details(evidence: Evidence, settings: Settings, level: float) -> tuple[str, ...]:
    confidence = settings.gate_confidence
    lines = [
        f"One-sided level of this look, which is number {evidence.looks:.1f} at these items: {percent(level)} for "
        "edit distance, 2.5 times that for likelihood beside it."
    ]
    for pairs in (evidence.likelihood, evidence.distance):
        if pairs is None:
            continue
        interval = bca_interval(pairs.differences, confidence)
        p, robust = sign_flip_p(pairs.gains), sign_flip_p(clipped(pairs.gains))
        lines.append(
            f"{by(pairs)}: {confidence:.0%} interval of the change {interval.low:+.3f} to {interval.high:+.3f}; "
            f"chance alone looks so good in {percent(p)} of cases, in {percent(robust)} with outliers clipped."
        )
    floors = {by(pairs): pairs.floor for pairs in (evidence.likelihood, evidence.distance) if pairs}
    if any(floors.values()):
        listing = ", ".join(f"{floor:.2g} {name}" for name, floor in floors.items())
        lines.append(f"Noise floor, live scored twice: {listing}. Differences up to it count as ties.")
    for part in evidence.general:
        for name, against in (("base", part.base), ("live", part.live)):
            tail = 0.05 / len(evidence.general)
            bounds = t_bounds(part.losses(against), tail)
            lines.append(
                f"{part.slice}, {part.metric}: loss against {name} {mean(part.losses(against)):+.2%}, with bounds "
                f"that are each missed in {percent(tail)} of cases {bounds.low:+.2%} and {bounds.high:+.2%}."
            )
    for fluency in evidence.fluency:
        faults = ", ".join(f"{kind} {live} -> {new}" for kind, (live, new) in fluency.broken) or "no faults"
        line = f"Language of {things(fluency.answers, 'answer')} to {fluency.about}: {faults}"
        if fluency.order:
            line += f"; words in order over shuffled {mean(fluency.order):+.2f} nats per token"
        if fluency.wanted_order:
            line += f" (wanted {mean(fluency.wanted_order):+.2f}, plain sentences {fluency.control:+.2f})"
        if fluency.surprise:
            line += f"; to the base model {mean(fluency.surprise.live):.2f} -> {mean(fluency.surprise.candidate):.2f}"
        lines.append(line + ".")
    for pairs in evidence.slices:
        if pairs.metric == LOG_LIKELIHOOD and len(pairs.live) < settings.gate_min_items:
            lines.append(
                f"The part {pairs.slice} has {things(len(pairs.live), 'question')}: few to guard alone."
            )
    return tuple(lines)


def by(pairs: Pairs) -> str:
    return "edit distance" if pairs.metric == EDIT_DISTANCE else "likelihood"
