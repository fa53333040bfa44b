import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrl.evaluation.statistics.intervals import (
    Interval,
    new_problems_bounds,
    new_problems_interval,
    paired_interval,
    pass_variances,
    rate_variances,
    same_problems_bounds,
    same_problems_interval,
)
from agentrl.evaluation.statistics.quantiles import student_t_quantile


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_wilson_with_all_or_nothing_values_is_wilsons_interval():
    # 15 of 30: variance of the mean is .25 / 29, so 29 effective trials and t(29)
    interval = new_problems_interval([1.0] * 15 + [0.0] * 15)
    t = student_t_quantile(0.975, 29)
    half = t / (1 + t * t / 29) * np.sqrt(0.25 / 29 + t * t / (4 * 29 * 29))
    assert interval.method == "wilson-effective"
    assert (interval.low, interval.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def clopper_pearson(right: int, drawn: int) -> tuple[float, float]:
    """The rates at which so few, and so many, right answers have a chance of 2.5% (Clopper and Pearson, 1934)."""

    def at_most(rate: float, most: int) -> float:
        return sum(math.comb(drawn, k) * rate**k * (1 - rate) ** (drawn - k) for k in range(most + 1))

    rates = np.linspace(0.0, 1.0, 20_001)
    low = next(rate for rate in rates if 1 - at_most(rate, right - 1) >= 0.025) if right else 0.0
    high = next(rate for rate in rates if at_most(rate, right) <= 0.025) if right < drawn else 1.0
    return float(low), float(high)


@pytest.mark.parametrize("right", [0, 1, 2, 28, 30])
def test_near_the_edges_the_bounds_become_those_of_clopper_and_pearson(right):
    interval = new_problems_interval([1.0] * right + [0.0] * (30 - right))
    low, high = clopper_pearson(right, 30)
    assert interval.method == "gaffke"
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.012)


def test_nothing_right_does_not_give_an_empty_interval():
    # fails when the variance alone decides: it is 0 here
    assert new_problems_interval([0.0] * 30).high > 0.1
    assert new_problems_interval([1.0] * 30).low < 0.9
    assert width(new_problems_interval([0.5] * 6)) > 0.2
    assert (
        same_problems_interval(0.0, rate_variances(np.zeros(30, int), np.full(30, 4)), trials=120).high > 0.0
    )


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40))
def test_bounds_hold_the_mean_and_stay_in_range(values):
    interval = new_problems_interval(values)
    assert 0.0 <= interval.low <= interval.high <= 1.0
    assert interval.low - 1e-6 <= np.mean(values) <= interval.high + 1e-6


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=30))
@example([0] * 7 + [1] * 4 + [4] * 2)  # exactly 3 problems' worth of right answers
def test_intervals_mirror_when_right_and_wrong_are_exchanged(counts):
    values = np.array(counts) / 4
    one, other = new_problems_interval(values), new_problems_interval(1 - values)
    assert one.low == pytest.approx(1 - other.high, abs=0.02)
    assert one.high == pytest.approx(1 - other.low, abs=0.02)


def test_same_problems_is_narrower_than_new_problems_when_problems_differ():
    right = np.array([0, 8] * 15)
    drawn = np.full(30, 8)
    new = new_problems_interval(right / drawn)
    same = same_problems_interval(0.5, rate_variances(right, drawn))
    assert width(same) < width(new) / 4


def test_one_answer_per_problem_takes_the_pooled_width():
    right, drawn = np.array([0, 1] * 15), np.ones(30, int)
    variances = rate_variances(right, drawn)
    # nothing distinguishes within from between: p (1 - p) / N to within the prior's strength
    assert variances.mean() == pytest.approx(0.25, rel=0.01)


def test_pass_variance_at_one_is_the_rate_variance():
    right, drawn = np.array([0, 2, 5, 8]), np.full(4, 8)
    assert pass_variances(right, drawn, 1) == pytest.approx(rate_variances(right, drawn), rel=1e-9)


def test_pass_variance_with_a_strong_prior_is_that_of_a_fixed_rate():
    # all problems alike: the fitted prior is narrow, and pass@n of n answers is one Bernoulli draw
    right, drawn = np.full(200, 4), np.full(200, 8)
    expected = (1 - 0.5**8) * 0.5**8
    assert pass_variances(right, drawn, 8)[0] == pytest.approx(expected, rel=0.15)


def test_paired_interval_by_hand():
    # 20 problems up by 1/2, 20 unchanged: mean 1/4, deviation .2532, t(39) = 2.0227
    interval = paired_interval([0.5] * 20 + [0.0] * 20)
    assert interval.method == "student-t"
    assert interval.low == pytest.approx(0.25 - 2.0226909 * np.sqrt(0.0625 * 40 / 39 / 40), rel=1e-6)
    # two changes only: Agresti-Min; sum -2, N + 2 = 32, variance (2 + 1) / 32 - (2 / 32)^2
    few = paired_interval([-1.0, -1.0] + [0.0] * 28)
    half = 1.959964 * np.sqrt((3 / 32 - (2 / 32) ** 2) / 32)
    assert few.method == "agresti-min"
    assert (few.low, few.high) == (
        pytest.approx(-2 / 32 - half, rel=1e-5),
        pytest.approx(-2 / 32 + half, rel=1e-5),
    )


def test_equal_results_leave_room_for_a_difference():
    interval = paired_interval([0.0] * 30)
    assert interval.low < 0.0 < interval.high


@pytest.mark.parametrize("difference", [1.0, -1.0, 0.5])
def test_differences_that_are_all_alike_do_not_give_an_empty_interval(difference):
    interval = paired_interval([difference] * 20)
    assert interval.method == "agresti-min"
    assert width(interval) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "spread", "samples"), [(0.2, 1.0, 4), (0.5, 0.3, 32), (0.8, 4.0, 4)])
def test_coverage_with_thirty_problems(mean, spread, samples):
    """The full study is benchmarks/intervals.py; this catches a broken formula."""
    rng = np.random.default_rng(5)
    rates = rng.beta(mean * spread, (1 - mean) * spread, (2000, 30))
    right = rng.binomial(samples, rates)
    low, high, _ = new_problems_bounds(right / samples)
    assert 0.93 <= np.mean((low <= mean) & (mean <= high)) <= 0.975
    truth = rates.mean(axis=1)
    values = right.mean(axis=1) / samples
    variance = rate_variances(right, np.full_like(right, samples)).sum(axis=1) / 900
    low, high = same_problems_bounds(values, variance, np.full(2000, 30.0))
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.975
