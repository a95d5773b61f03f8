"""Intervals and the exact test: against SciPy, against theory, and honest where nothing differs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from comfyloop.gate.metrics import edit_distance, log_likelihood
from comfyloop.gate.statistics import (
    EXACT_UP_TO,
    RESAMPLES,
    bca_interval,
    binomial_p,
    clipped,
    holm,
    lower_p,
    reduction,
    sign_flip_p,
    t_bounds,
)

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=1, max_size=9)
SKEWED = [0.1, 0.2, 0.15, 0.9, 3.5, 0.4, 0.05, 1.2, 0.3, 0.7, 2.2, 0.25]


@pytest.mark.parametrize("items", [5, 12, 300])
def test_intervals_are_scipys(items: int) -> None:
    values = (SKEWED * 25)[:items]
    theirs = stats.bootstrap(
        (np.sort(values),), np.mean, method="BCa", n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bca_interval(values, 0.95) == pytest.approx(theirs, abs=1e-12)


def test_an_interval_of_values_that_are_all_but_equal_has_numbers() -> None:
    # SciPy says nan here: why it is not what is called.
    assert bca_interval([1.0, 1.0, 1.0, 1.0 + 2**-52], 0.95) == pytest.approx((1.0, 1.0))
    low, high = bca_interval([1e-120, 2e-120, 4e-120], 0.95)
    assert 1e-120 <= low <= high <= 4e-120


def test_the_exact_test_is_scipys() -> None:
    theirs = stats.permutation_test(
        (np.array(SKEWED) - 0.6,), lambda x, axis: x.sum(axis=axis), permutation_type="samples",
        alternative="greater", n_resamples=2 ** len(SKEWED), vectorized=True,
    )  # fmt: skip
    assert sign_flip_p([value - 0.6 for value in SKEWED]) == pytest.approx(theirs.pvalue)


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bca_interval(generator.exponential(1.0, 40).tolist(), 0.9)
        inside += low <= 1.0 <= high
    assert 0.82 <= inside / 200 <= 0.96


@given(numbers, st.randoms())
def test_the_order_of_items_changes_nothing(values: list[float], order) -> None:  # type: ignore[no-untyped-def]
    mixed = list(values)
    order.shuffle(mixed)
    assert bca_interval(values, 0.95) == bca_interval(mixed, 0.95)
    assert sign_flip_p(values) == sign_flip_p(mixed)


@given(numbers)
def test_an_interval_stays_within_the_values_and_is_ordered(values: list[float]) -> None:
    low, high = bca_interval(values, 0.95)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@given(numbers)
def test_the_sign_flip_test_counts_all_assignments(values: list[float]) -> None:
    sums = [
        sum(s * abs(v) for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    expected = sum(total >= sum(values) - 1e-9 for total in sums) / len(sums)
    assert sign_flip_p(values) == pytest.approx(expected)


def test_the_sign_flip_test_at_its_ends() -> None:
    assert sign_flip_p([1.0] * 5) == 1 / 32
    assert sign_flip_p([-1.0] * 5) == 1
    assert sign_flip_p([0.0] * 5) == 1


def test_the_drawn_test_agrees_with_the_exact_one() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(0.3, 1.0, EXACT_UP_TO).tolist()
    more = [*values, 1e-9]  # one item more, of no weight: the same question, now by drawing
    assert sign_flip_p(more) == pytest.approx(sign_flip_p(values), abs=0.01)


def test_the_reduction_is_that_of_the_means() -> None:
    live, candidate = [0.8, 0.7, 0.9, 0.6], [0.4, 0.35, 0.45, 0.3]
    assert reduction(live, candidate, 0.95) == (pytest.approx(0.5), pytest.approx(0.5))


# --- metrics


def slow_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, mine in enumerate(first, start=1):
        fresh = [i]
        for j, theirs in enumerate(second, start=1):
            fresh.append(min(row[j] + 1, fresh[-1] + 1, row[j - 1] + (mine != theirs)))
        row = fresh
    return row[-1]


@given(st.text("abc", max_size=70), st.text("abc", max_size=70))
def test_the_distance_is_levenshteins_over_the_longer_text(first: str, second: str) -> None:
    longer = max(len(first), len(second), 1)
    assert (
        edit_distance(first, second) == slow_distance(first, second) / longer == edit_distance(second, first)
    )


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_edit_distance_is_between_equal_and_all(answer: str, reference: str) -> None:
    assert 0 <= edit_distance(answer, reference) <= 1
    assert (edit_distance(answer, reference) == 0) == (answer.strip() == reference.strip())


def test_the_edit_distance_by_hand() -> None:
    assert edit_distance("kitten", "sitting\n") == 3 / 7
    assert edit_distance("", "") == 0
    assert edit_distance("猫在睡觉", "狗在睡觉") == 0.25


def test_no_tokens_have_no_likelihood() -> None:
    assert log_likelihood([-1.0, -3.0]) == -2.0
    with pytest.raises(ValueError, match="no tokens"):
        log_likelihood([])


def test_students_bounds_are_scipys() -> None:
    values = np.array(SKEWED)
    for tail in (0.05, 0.0125):
        ours = t_bounds(SKEWED, tail)
        theirs = stats.t.interval(1 - 2 * tail, len(values) - 1, values.mean(), stats.sem(values))
        assert ours == pytest.approx(theirs, abs=0.01)
    assert t_bounds([1.0], 0.05) == (-np.inf, np.inf)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_rejects_no_more_than_none_and_no_less_than_bonferronis(ps: list[float]) -> None:
    falls = holm(ps, 0.05)
    for p, fallen in zip(ps, falls, strict=True):
        assert not fallen or p <= 0.05 + 1e-9
        assert fallen or p > 0.05 / len(ps)


@given(st.integers(1, 30), st.data())
def test_the_coins_share_is_scipys(of: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, of))
    assert binomial_p(hits, of) == pytest.approx(stats.binomtest(hits, of, alternative="greater").pvalue)


@given(numbers)
def test_clipping_keeps_signs_and_all_but_the_largest_sizes(values: list[float]) -> None:
    cut = clipped(values)
    assert all(a * b >= 0 and abs(b) <= abs(a) for a, b in zip(values, cut, strict=True))
    assert sum(a != b for a, b in zip(values, cut, strict=True)) <= 1
    assert clipped([-value for value in values]) == [-value for value in cut], "the test of it stays exact"


def test_a_part_is_low_when_few_parts_drawn_by_chance_are_as_low() -> None:
    whole = [0.5] * 95 + [-2.0] * 5
    assert lower_p([-2.0] * 5, whole) < 1e-3
    assert lower_p([0.5] * 5, whole) > 0.5
    assert lower_p(whole, whole) == 1.0


def test_drawing_that_stops_early_gives_the_same_share() -> None:
    generator = np.random.default_rng(5)
    values = generator.normal(0.1, 1, 40)
    sizes = np.abs(values)
    signs = generator.integers(0, 2, (200_000, 40)) * 2 - 1
    expected = float(((signs * sizes).sum(axis=1) >= values.sum()).mean())
    assert sign_flip_p(values.tolist()) == pytest.approx(expected, rel=0.1)
