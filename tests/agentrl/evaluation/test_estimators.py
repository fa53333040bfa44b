import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.evaluation.statistics.estimators import (
    area_under_curve,
    avg_at_k,
    best_at_k_bootstrap,
    ks_up_to,
    pass_at_k,
    within_problem_area,
)


def test_avg_at_k():
    assert avg_at_k(np.array([0, 1, 4]), np.array([4, 4, 4])).tolist() == [0.0, 0.25, 1.0]


@settings(deadline=None)
@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, data):
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    answers = [1] * c + [0] * (n - c)
    subsets = list(itertools.combinations(answers, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    # fails when the product runs over k + 1 factors instead of k
    assert pass_at_k(np.array([c]), np.array([n]), k)[0] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.0, 1.0), st.data())
def test_pass_at_k_is_unbiased(n, rate, data):
    k = data.draw(st.integers(1, n))
    counts = np.arange(n + 1)
    chances = np.array([comb(n, c) * rate**c * (1 - rate) ** (n - c) for c in counts])
    mean = float(chances @ pass_at_k(counts, np.full(n + 1, n), k))
    assert mean == pytest.approx(1 - (1 - rate) ** k, abs=1e-9)


def test_pass_at_one_is_avg():
    right, drawn = np.array([0, 3, 8]), np.array([8, 8, 8])
    assert pass_at_k(right, drawn, 1) == pytest.approx(avg_at_k(right, drawn))


def test_pass_at_k_does_not_overflow():
    assert pass_at_k(np.array([1]), np.array([10_000]), 5_000)[0] == pytest.approx(0.5)


def test_k_larger_than_the_answers_is_an_error():
    with pytest.raises(ValueError, match="needs at least 5 answers per problem; one has 4"):
        pass_at_k(np.array([1]), np.array([4]), 5)


def test_bootstrap_of_verl_is_biased_low_as_its_expectation_says():
    # c = 1 of n = 4, k = 4: with replacement 1 - 0.75^4 = 0.684, without it certain
    value = best_at_k_bootstrap(np.array([1]), np.array([4]), 4, resamples=20_000)[0]
    assert value == pytest.approx(1 - 0.75**4, abs=0.01)
    assert pass_at_k(np.array([1]), np.array([4]), 4)[0] == 1.0


def test_ks_of_a_table():
    assert ks_up_to(1) == [1]
    assert ks_up_to(6) == [1, 2, 4, 6]
    assert ks_up_to(32) == [1, 2, 4, 8, 16, 32]
    assert ks_up_to(0) == []


def test_area_under_curve_by_hand():
    # pairs (right, wrong): (3, 1) won, (3, 2) won, (2, 1) won, (2, 2) tied -> 3.5 of 4
    assert area_under_curve([3, 2, 1, 2], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert area_under_curve([1.0, 2.0], [True, True]) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_area_under_curve_is_the_share_of_pairs_won(pairs):
    scores, labels = [float(s) for s, _ in pairs], [r for _, r in pairs]
    right = [s for s, ok in zip(scores, labels, strict=True) if ok]
    wrong = [s for s, ok in zip(scores, labels, strict=True) if not ok]
    area = area_under_curve(scores, labels)
    if not right or not wrong:
        assert area is None
    else:
        won = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
        assert area == pytest.approx(won / (len(right) * len(wrong)))


def test_confidence_that_only_knows_the_problem_is_worth_one_half_within_problems():
    problems = ["easy"] * 3 + ["hard"] * 3
    confidence = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]
    right = [True, True, False, True, False, False]
    assert within_problem_area(problems, confidence, right) == pytest.approx(0.5)
    overall = area_under_curve(confidence, right)
    assert overall is not None
    assert overall > 0.6
