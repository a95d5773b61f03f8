"""Concerns about a candidate that is better on average: a slice that got worse, forgetting, broken language.
Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from comfyloop.gate.findings import LOOK_AT_IT, Found
from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, RIGHT_ANSWER
from comfyloop.gate.pairs import Evidence, Fluency, General, Pairs, is_likelihood, mean, percent, things
from comfyloop.gate.statistics import (
    Interval,
    binomial_p,
    clipped,
    holm,
    lower_p,
    sign_flip_p,
    t_bounds,
)
from comfyloop.records import Verdict

LEVEL = 0.05
"""Of each kind of check here, all parts together."""

_HURT = {LOG_LIKELIHOOD: 0.1, EDIT_DISTANCE: 0.05}
"""Mean loss of a part below which nobody would notice."""

_MUCH = 0.5
"""Nats per token: an item that lost more became much worse, if that is also far from what the others gained."""

_TAIL_LEVEL = 0.12
"""Five against one pass for a tail that is heavier on one side: it only asks, and asks for three at least."""

_NO_ORDER = 0.7
"""Nats per token that words in order must be likelier than shuffled. Language has 1 to 4, random words about 0."""

_STRANGE = 0.5
"""Nats per token by which answers may be less likely to the base model than the texts that were wanted."""


# --- general questions


def bounds(general: General, against: Sequence[float], kinds: int) -> tuple[float, Interval]:
    """The losses with bounds; over all kinds of questions together, any bound is missed in at most 5% of cases."""
    losses = general.losses(against)
    return mean(losses), t_bounds(losses, LEVEL / kinds)


def forgets(general: General, allowed: float, kinds: int) -> Found | None:
    """The rejection if the loss is proven to exceed the limit."""
    lost, interval = bounds(general, general.base, kinds)
    if interval.low > allowed:
        return _forgets(general, lost, interval, allowed, "the base model")
    if general.live == general.base:
        return None
    gained = -mean(General(general.metric, "", general.base, (), general.live).losses(general.base))
    lost, interval = bounds(general, general.live, kinds)
    if interval.low > allowed + max(gained, 0.0):
        return _forgets(general, lost, interval, allowed, "the live version")
    return None


def _forgets(general: General, lost: float, interval: Interval, allowed: float, against: str) -> Found:
    unit = "of the chance of a right answer" if general.metric == RIGHT_ANSWER else "of its log-likelihood"
    return Found(
        Verdict.REJECT,
        f"The candidate forgets: it lost {percent(lost)} {unit} on {general.slice} questions against "
        f"{against} (at least {percent(max(interval.low, 0.0))}); {percent(allowed)} is allowed.",
        "Train more gently: a higher replay_share, a lower learning_rate or fewer epochs. The questions that "
        "moved most are listed below.",
    )


def _may_forget(general: General, allowed: float, kinds: int) -> Found | None:
    lost, interval = bounds(general, general.base, kinds)
    if not (interval.low > 0 and lost > allowed):
        return None
    unit = "of the chance of a right answer" if general.metric == RIGHT_ANSWER else "of its log-likelihood"
    return Found(
        Verdict.ASK,
        f"The candidate seems to lose {percent(lost)} {unit} on {general.slice} questions (between "
        f"{percent(interval.low)} and {percent(interval.high)}; {percent(allowed)} is allowed), which is too "
        "wide to tell.",
        f"Look at the general questions that moved most. {LOOK_AT_IT}",
    )


# --- parts of the corrections


def worse_part(slices: Sequence[Pairs], smallest: float) -> Pairs | None:
    """The first slice that is worse by the exact test, corrected for the number of slices."""
    losing = [[-gain for gain in part.gains] for part in slices]
    ps = [sign_flip_p(clipped(losses)) if mean(losses) >= smallest else 1.0 for losses in losing]
    falls = holm(ps, LEVEL)
    for part, losses, fallen in zip(slices, losing, falls, strict=True):
        if fallen and mean(losses) >= smallest:
            return part
    return None


def apart(slices: Sequence[Pairs], whole: Sequence[Pairs]) -> Pairs | None:
    """A slice that got worse while the rest did not: worse than random subsets of its size would be.

    Its median must be a loss, too: a single bad item does not make a bad slice.
    """
    pools = {pairs.metric: pairs.gains for pairs in whole}
    candidates = [
        part
        for part in slices
        if part.metric in pools and 3 <= len(part.live) <= 0.6 * len(pools[part.metric])
    ]

    def is_hurt(part: Pairs) -> bool:
        return mean(part.gains) <= -_HURT.get(part.metric, 0.0) and median(part.gains) < 0

    ps = [lower_p(part.gains, pools[part.metric]) if is_hurt(part) else 1.0 for part in candidates]
    return next((part for part, fallen in zip(candidates, holm(ps, LEVEL), strict=True) if fallen), None)


def much_worse(pairs: Pairs) -> int:
    """The number of items that lost much, if there are at least 3 and 3% of all, and significantly more of them
    than items that gained as much, so that heavy tails do not explain it; otherwise 0."""
    gains = pairs.gains
    middle = median(gains)
    far = max(_MUCH, 5 * median(abs(gain - middle) for gain in gains)) + max(middle, 0.0)
    down = sum(gain < middle - far for gain in gains)
    up = sum(gain > middle + far for gain in gains)
    enough = down >= max(3, math.ceil(0.03 * len(gains)))
    return down if enough and binomial_p(down, down + up) <= _TAIL_LEVEL else 0


# --- language


def broken(fluency: Fluency) -> str | None:
    """A sentence about answers that are no longer fluent, or None."""
    answers, about = fluency.answers, fluency.about
    for kind, (live, candidate) in fluency.broken:
        more = candidate - live
        if more >= (1 if kind == "empty" else max(2, math.ceil(0.1 * answers))):
            what = {"empty": "are empty", "repeating": "repeat themselves"}.get(kind, "run on far too long")
            return (
                f"Of {things(answers, 'answer')} of the candidate to {about}, {candidate} {what}; of the live "
                f"version's {live}."
            )
    if len(fluency.order) >= 3 and fluency.control >= 2 * _NO_ORDER and mean(fluency.order) < _NO_ORDER:
        return (
            "The candidate's answers look like words in no order: the base model finds them about as likely "
            f"shuffled ({mean(fluency.order):+.1f} nats per token; plain sentences have {fluency.control:+.1f})."
        )
    if (
        len(fluency.wanted_order) >= 3
        and fluency.control >= 2 * _NO_ORDER
        and mean(fluency.wanted_order) < _NO_ORDER
    ):
        return (
            "Your corrections look like words in no order: the base model finds them about as likely shuffled "
            f"({mean(fluency.wanted_order):+.1f} nats per token; plain sentences have {fluency.control:+.1f})."
        )
    if (surprise := fluency.surprise) is not None and len(surprise.live) >= 3 and fluency.wanted:
        strange = mean(fluency.wanted) - mean(surprise.candidate)
        if (
            strange > _STRANGE
            and mean(surprise.gains) < -_STRANGE
            and sign_flip_p([-g for g in surprise.gains]) <= LEVEL
        ):
            return (
                f"The base model finds the candidate's answers to {about} strange: {mean(surprise.candidate):.1f} "
                f"nats per token, the live version's {mean(surprise.live):.1f}, the texts that you wanted "
                f"{mean(fluency.wanted):.1f}."
            )
    return None


# --- all together


def to_ask(evidence: Evidence, pairs: Pairs, allowed: float) -> Iterator[Found]:
    """What a person should check before a better candidate is promoted, most serious first."""
    for fluency in evidence.fluency:
        if (sentence := broken(fluency)) is not None:
            yield Found(
                Verdict.ASK, sentence, f"Read the candidate's answers and your corrections. {LOOK_AT_IT}"
            )
    whole = [part for part in (pairs, evidence.distance) if part is not None]
    if (part := apart(evidence.slices, whole)) is not None:
        by = "likelihood" if is_likelihood(part) else "edit distance"
        yield Found(
            Verdict.ASK,
            f"The candidate is better on the mean, but {part.slice} ({things(len(part.live), 'question')}) got "
            f"worse by {by}.",
            f"Look at the answers that got worse. {LOOK_AT_IT}",
        )
    if many := much_worse(pairs):
        yield Found(
            Verdict.ASK,
            f"The candidate is better on the mean, but {many} of {len(pairs.live)} corrections became much less "
            "likely.",
            f"Look at these {things(many, 'answer')}, listed below. {LOOK_AT_IT}",
        )
    for kind in evidence.general:
        if (lost := _may_forget(kind, allowed, len(evidence.general))) is not None:
            yield lost
