"""Intervals and tests for paired differences with few items. NumPy only; seeded, and blind to item order.

- Percentile bootstrap: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7
  (1979). Too narrow for few items.
- BCa, bias-corrected and accelerated: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987).
  Better for skewed differences, still too narrow for fewer than about ten.
- Sign flips: R. A. Fisher, "The Design of Experiments" (1935), ch. 3; E. J. G. Pitman, JRSS Supplement 4
  (1937). If the versions were interchangeable, each difference could as well have had the other sign, so all
  2^n assignments are equally likely: an exact test however few the items are. With drawn assignments instead
  of all, p = (1 + hits) / (1 + draws): B. Phipson and G. K. Smyth, SAGMB 9 (2010).

The gate asks for both an interval and the exact test: the interval says how much, the test keeps the promise
about false promotions where the interval cannot (5 to 10 items).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
EXACT_UP_TO = 16
"""Items up to which all 2^n sign assignments are counted."""

DRAWS = 19_999
_CHUNK = 2_000_000  # numbers drawn at a time

_Floats = npt.NDArray[np.floating[Any]]


class Interval(NamedTuple):
    low: float
    high: float


def percentile_interval(values: Sequence[float], confidence: float, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean: the quantiles of the resampled means.

    Args:
        values: One difference an independent item, at least 1. A single value is its own interval.
        confidence: For example 0.95, two-sided.
    """
    sample = _sorted(values)
    if sample[0] == sample[-1]:
        return Interval(float(sample[0]), float(sample[0]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled(sample[:, None], seed)[:, 0], [tail, 1 - tail])
    return Interval(float(low), float(high))


def bca_interval(values: Sequence[float], confidence: float, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean, corrected for bias and for a spread that changes with the mean.

    Args: as of `percentile_interval`.
    """
    sample = _sorted(values)
    if sample[0] == sample[-1]:
        return Interval(float(sample[0]), float(sample[0]))
    means = _resampled(sample[:, None], seed)[:, 0]
    mean = float(sample.mean())
    normal = NormalDist()
    below = (np.count_nonzero(means < mean) + 0.5 * np.count_nonzero(means == mean)) / len(means)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(means)), 1 - 0.5 / len(means)))
    left_out = (sample.sum() - sample) / (len(sample) - 1)
    away = left_out.mean() - left_out
    if spread := float(np.abs(away).max()):
        away /= spread  # the quotient is the same, and squares of tiny differences do not vanish
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5)) if spread else 0.0
    quantiles = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        quantiles.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, quantiles)
    return Interval(float(low), float(high))


def reduction(
    live: Sequence[float], candidate: Sequence[float], confidence: float, seed: int = 0
) -> Interval:
    """Percentile interval of the share by which the candidate's mean is below the live one's.

    Args:
        live, candidate: Paired, not negative; live's mean above 1e-6.
    """
    pairs = np.array(sorted(zip(live, candidate, strict=True)), dtype=np.float64)
    means = _resampled(pairs, seed)
    means = means[means[:, 0] > 1e-9]
    tail = (1 - confidence) / 2
    low, high = np.quantile(1 - means[:, 1] / means[:, 0], [tail, 1 - tail])
    return Interval(float(low), float(high))


def sign_flip_p(values: Sequence[float], seed: int = 0) -> float:
    """How often chance alone would give a mean as high as that of `values` (one-sided p).

    Exact up to 16 values, drawn beyond. It is never below 1 / 2^n: 5 items are the fewest that can reach 5%.
    """
    sizes = np.abs(_sorted(values))
    observed = math.fsum(values)
    slack = 1e-12 * max(float(sizes.sum()), 1e-300)  # sums that differ by rounding only are equal
    if len(sizes) <= EXACT_UP_TO:
        sums: _Floats = np.zeros(1)
        for size in np.sort(sizes):
            sums = np.concatenate([sums - size, sums + size])
        return float(np.count_nonzero(sums >= observed - slack) / len(sums))
    generator = np.random.default_rng(seed)
    sizes = np.sort(sizes)
    hits = 0
    rows = max(1, _CHUNK // len(sizes))
    for start in range(0, DRAWS, rows):
        signs = generator.integers(0, 2, size=(min(rows, DRAWS - start), len(sizes)), dtype=np.int8)
        drawn: _Floats = (2.0 * signs - 1.0) @ sizes
        hits += int(np.count_nonzero(drawn >= observed - slack))
    return (1 + hits) / (1 + DRAWS)


def _sorted(values: Sequence[float]) -> _Floats:
    """Sorted, so that the order of the items changes nothing."""
    return np.sort(np.asarray(values, dtype=np.float64))


def _resampled(rows: _Floats, seed: int) -> _Floats:
    """Means over resamples, [RESAMPLES, columns], of `rows`, [items, columns]."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(rows))
    means = [
        rows[generator.integers(0, len(rows), size=(min(step, RESAMPLES - start), len(rows)))].mean(axis=1)
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(means)
