"""A canary is called worse by mistake in at most `level` of all cases, however often one looks; and found if it is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.gate.canary import MARGIN, Outcome, bounds, compared, differences, first_at, log_wealth
from comfyloop.records import CanaryVerdict

LEVEL = 0.05


def losses(rng: np.random.Generator, mean: float, size: tuple[int, ...]) -> np.ndarray:
    """Most answers are used as they are or edited a little, some rewritten; with that mean."""
    edited = rng.random(size) < mean / 0.4
    return np.where(edited, rng.beta(2, 3, size), 0.0)  # Beta(2, 3) has the mean 0.4


def canaries(
    rng: np.random.Generator, old: float, new: float, share: float, count: int, pairs: int
) -> np.ndarray:
    """Differences of many canaries: of each piece of feedback on the rarer version and the mean of those beside it."""
    beside = max(1, round((1 - share) / share)) if share < 0.5 else max(1, round(share / (1 - share)))
    rare, common = (new, old) if share < 0.5 else (old, new)
    one = losses(rng, rare, (count, pairs))
    others = losses(rng, common, (count, pairs, beside)).mean(axis=-1)
    return one - others if share < 0.5 else others - one


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("mean", [0.05, 0.3])
def test_looking_always_a_canary_that_is_no_worse_is_taken_back_in_few_cases(
    share: float, mean: float
) -> None:
    rng = np.random.default_rng(7)
    found = canaries(rng, mean, mean, share, 1000, 200)
    ever = log_wealth(found).max(axis=-1) >= -math.log(LEVEL)
    # 1000 tries at the level itself would be above this in one of a thousand cases
    assert ever.mean() <= LEVEL + 3.1 * math.sqrt(LEVEL * (1 - LEVEL) / 1000)
    calm = log_wealth(MARGIN - (found + MARGIN)).max(axis=-1) >= -math.log(LEVEL)
    assert calm.mean() <= LEVEL + 3.1 * math.sqrt(LEVEL * (1 - LEVEL) / 1000)


def test_it_holds_when_people_change_with_time() -> None:
    """A worse week falls on both versions: what came in the same while is set side by side."""
    rng = np.random.default_rng(3)
    week = 0.15 + 0.12 * np.sin(np.arange(200) / 20)
    one, other = (
        np.where(rng.random((1000, 200)) < week / 0.4, rng.beta(2, 3, (1000, 200)), 0) for _ in "ab"
    )
    ever = log_wealth(one - other).max(axis=-1) >= -math.log(LEVEL)
    assert ever.mean() <= LEVEL + 3.1 * math.sqrt(LEVEL * (1 - LEVEL) / 1000)


@pytest.mark.parametrize(
    ("worse", "share", "most"), [(0.3, 0.5, 45), (0.2, 0.5, 90), (0.2, 0.1, 60), (0.1, 0.1, 200)]
)
def test_one_that_is_worse_is_found_in_most_cases(worse: float, share: float, most: int) -> None:
    """Within so many pieces of feedback on the canary, in four of five cases."""
    rng = np.random.default_rng(5)
    found = canaries(rng, 0.1, 0.1 + worse, share, 400, most)
    assert (log_wealth(found).max(axis=-1) >= -math.log(LEVEL)).mean() >= 0.8


def outcomes(rng: np.random.Generator, old: float, new: float, share: float, count: int) -> list[Outcome]:
    sides = rng.random(count) < share
    return [
        Outcome(bool(side), float(loss))
        for side, loss in zip(
            sides, np.where(sides, losses(rng, new, (count,)), losses(rng, old, (count,))), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("new", "verdict"),
    [(0.35, CanaryVerdict.WORSE), (0.02, CanaryVerdict.NO_WORSE), (0.13, CanaryVerdict.RUNNING)],
)
def test_the_verdict_on_a_stream_of_outcomes(new: float, verdict: CanaryVerdict) -> None:
    stream = outcomes(np.random.default_rng(11), 0.1, new, 0.3, 400)
    found = compared(stream, LEVEL)
    assert found.verdict is verdict
    assert found.canary + found.live == 400
    assert found.low <= found.canary_loss - found.live_loss <= found.high
    later = compared([*stream, *outcomes(np.random.default_rng(1), 0.4, 0.0, 0.3, 40)], LEVEL)
    assert verdict is CanaryVerdict.RUNNING or later.verdict is verdict  # what is proven stays so


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=60))
def test_differences_lie_between_minus_one_and_one_and_use_every_while_once(
    said: list[tuple[bool, float]],
) -> None:
    stream = [Outcome(*one) for one in said]
    found = differences(stream)
    assert all(-1 <= one <= 1 for one in found)
    changes = sum(a.canary is not b.canary for a, b in itertools.pairwise(stream))
    assert len(found) <= changes
    assert [-one for one in found] == pytest.approx(differences([Outcome(not c, loss) for c, loss in said]))
    verdict = compared(stream, LEVEL)
    assert -1 <= verdict.low <= verdict.high <= 1


def test_bounds_close_in_on_the_difference() -> None:
    rng = np.random.default_rng(2)
    found = canaries(rng, 0.1, 0.25, 0.2, 1, 800)[0]
    widths = []
    for count in (0, 50, 200, 800):
        low, high = bounds(found[:count], LEVEL)
        assert low <= 0.15 <= high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True) and widths[0] == 2 and widths[-1] < 0.15


def test_nothing_is_said_of_nothing() -> None:
    found = compared([], LEVEL)
    assert (found.verdict, found.canary, found.live, found.low, found.high) == (
        CanaryVerdict.RUNNING,
        0,
        0,
        -1,
        1,
    )
    assert first_at(log_wealth(np.zeros(10)), LEVEL) is None
