"""The statistics of a canary: is the new version treated worse than the old one? May be evaluated at any time.
Pure.

Feedback on an answer is a loss between 0 and 1: the edit distance of its edit, 0 if it was accepted, (5 - rating) /
4 if it was rated. Conversations are assigned to the two versions at random, so each piece of feedback on one
version is compared with the mean of those on the other in the same period; the differences lie between -1 and 1,
have the difference of the two versions as their mean, and do not drift with time or load.

The test bets against "the new version is no worse": on each next difference, a fixed share of the current wealth.
If the hypothesis is true, no betting strategy has an expected gain, so the wealth ever reaches 1/level in at most
`level` of all canaries, no matter how often it is checked (Ville's inequality). The wealth is the mean over
nineteen fixed shares. The reverse bets prove that the version is not worse by more than MARGIN.

I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024; for two
samples S. Shekhar and A. Ramdas, "Nonparametric two-sample testing by betting", IEEE Trans. Inf. Theory 70, 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comfyloop.records import CanaryVerdict

MARGIN = 0.05
"""A loss of so much more is what "no worse" allows: an edit of one more character in twenty."""

_SHARES = np.linspace(0.05, 0.95, 19)
_MEANS = np.linspace(-1.0, 1.0, 201)

Floats = NDArray[np.float64]


class Outcome(NamedTuple):
    """How one answer was treated."""

    canary: bool
    loss: float  # 0: used as it was, 1: nothing of it was left


class Compared(NamedTuple):
    """The result; `low` and `high` bound the canary's mean loss minus the live version's, simultaneously at all
    times."""

    verdict: CanaryVerdict
    canary: int
    live: int
    canary_loss: float
    live_loss: float
    low: float
    high: float


def compared(outcomes: Sequence[Outcome], level: float) -> Compared:
    """The verdict on outcomes, given in order of arrival. What was proven once stays proven.

    Args:
        level: The share of canaries that are no worse and yet called so, at any time; and likewise of those that are
            worse by MARGIN and called no worse.
    """
    gaps = np.array(differences(outcomes))
    worse = first_at(log_wealth(gaps), level)
    no_worse = first_at(log_wealth(MARGIN - gaps), level)
    verdict = CanaryVerdict.RUNNING
    if worse is not None and (no_worse is None or worse <= no_worse):
        verdict = CanaryVerdict.WORSE
    elif no_worse is not None:
        verdict = CanaryVerdict.NO_WORSE
    sides = [[one.loss for one in outcomes if one.canary is side] for side in (True, False)]
    new, old = (math.fsum(side) / len(side) if side else 0.0 for side in sides)
    low, high = bounds(gaps, level)
    return Compared(verdict, len(sides[0]), len(sides[1]), new, old, low, high)


def differences(outcomes: Sequence[Outcome]) -> list[float]:
    """Canary loss minus live loss, one value per period; a period ends as soon as it has outcomes of both
    versions."""
    gaps: list[float] = []
    sides: tuple[list[float], list[float]] = ([], [])
    for one in outcomes:
        sides[one.canary].append(one.loss)
        live, canary = sides
        if live and canary:
            gaps.append(math.fsum(canary) / len(canary) - math.fsum(live) / len(live))
            sides = ([], [])
    return gaps


def log_wealth(gains: Floats) -> Floats:
    """The log-wealth, starting from wealth 1, after each gain along the last axis.

    Args:
        gains: Above -1 / 0.95, and 0 or less on the mean where what is bet against is true.
    """
    each = np.stack([np.cumsum(np.log1p(share * gains), axis=-1) for share in _SHARES])
    top = each.max(axis=0)
    mean: Floats = top + np.log(np.exp(each - top).mean(axis=0))
    return mean


def first_at(wealth: Floats, level: float) -> int | None:
    """The number of gains after which the wealth first reached 1/level; None if never."""
    there = np.flatnonzero(wealth >= -math.log(level))
    return int(there[0]) if len(there) else None


def bounds(gaps: Floats, level: float) -> tuple[float, float]:
    """The confidence sequence's interval for the mean: all means that no bet, in either direction, has rejected so
    far."""
    if not len(gaps):
        return -1.0, 1.0
    apart = gaps[None, :] - _MEANS[:, None]
    room = 1.0 + np.abs(_MEANS)[:, None]
    both: list[Any] = [log_wealth(sign * apart / room).max(axis=-1) for sign in (1, -1)]
    means = _MEANS[np.maximum(*both) < -math.log(level / 2)]
    if not len(means):  # beyond what chance allows: outcomes that do not have one mean
        return float(gaps.mean()), float(gaps.mean())
    return float(means[0]), float(means[-1])
