from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import DataError
from agentrl.evaluation.comparison import compare
from agentrl.evaluation.results import Record
from agentrl.evaluation.statistics.exact_tests import _drawn, false_discovery, fisher_exact, sign_flip_test


def record(problem: str, draw: int, right: bool, **changes) -> Record:
    values = {
        "problem": problem, "draw": draw, "seed": 0, "score": float(right), "reward": float(right),
        "reward_range": (0.0, 1.0), "verdict": "right" if right else "wrong", "stated": "1", "gold": "1",
        "strict": right, "stop_reason": "answered", "truncated": False, "failure": None, "turns": 1,
        "tool_calls": 0, "tool_errors": 0, "sampled_tokens": 10, "prompt_tokens": 5, "seconds": 1.0,
        "tool_seconds": 0.0, "confidence": -0.5, "cost": 0.0, "attempts": 1, "version": 0,
    }  # fmt: skip
    return Record(**(values | changes))


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_sign_flips_equal_enumeration(numerators):
    differences = [Fraction(n, 4) for n in numerators]
    sums = [0]  # in quarters
    for n in numerators:
        sums = [total + signed for total in sums for signed in (n, -n)]
    expected = sum(abs(total) >= abs(sum(numerators)) for total in sums) / len(sums)
    # fails when only one tail is counted
    p_value, how = sign_flip_test(differences)
    assert how == "exact"
    assert p_value == pytest.approx(expected, abs=1e-12)


def test_one_answer_each_is_mcnemars_sign_test():
    # 8 up, 1 down: 2 x (C(9,0) + C(9,1)) / 2^9
    differences = [Fraction(1)] * 8 + [Fraction(-1)] + [Fraction(0)] * 21
    assert sign_flip_test(differences)[0] == pytest.approx(2 * (1 + 9) / 512)


def test_nothing_changed():
    assert sign_flip_test([Fraction(0)] * 5) == (1.0, "exact")


def test_drawn_signs_agree_with_the_exact_test():
    differences = [Fraction(1, 3), Fraction(2, 5), Fraction(-1, 7), Fraction(1, 2), Fraction(3, 4)]
    exact = sign_flip_test(differences)[0]
    import numpy as np

    drawn = _drawn(np.array([float(abs(d)) for d in differences]), abs(float(sum(differences))))
    assert drawn == pytest.approx(exact, abs=0.01)


def test_fisher_by_hand():
    # 4 of 4 against 0 of 4: 2 / C(8, 4)
    assert fisher_exact(4, 4, 0, 4) == pytest.approx(2 / comb(8, 4))
    assert fisher_exact(2, 4, 2, 4) == 1.0


def test_false_discoveries_by_hand():
    # thresholds .1 x (1/4, 2/4, 3/4, 1) = .025 .05 .075 .1: .01 and .04 pass, .09 and .5 do not
    assert false_discovery([0.5, 0.01, 0.09, 0.04], 0.1) == [False, True, False, True]


def test_compare_by_hand():
    a = [record(f"p{i}", d, False) for i in range(12) for d in range(2)]
    b = [record(f"p{i}", d, i < 10) for i in range(12) for d in range(2)] + [record("new", 0, True)]
    found = compare(a, b, ks=(2,))
    assert found.problems == 12
    assert found.only_b == ("new",)
    assert (found.mean_a, found.mean_b, found.difference) == (
        0.0,
        pytest.approx(10 / 12),
        pytest.approx(10 / 12),
    )
    assert (found.better, found.worse, found.equal) == (10, 0, 2)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.pass_differences[2][0] == pytest.approx(10 / 12)
    assert found.changes[0].difference == 1.0
    assert found.new_problems.low > 0.4
    assert found.same_problems.low > 0.5
    assert found.to_json()["pass_differences"]["2"]["low"] > 0.4


def test_failures_are_left_out_of_a_comparison():
    failure = ("sandbox", "SandboxFailure", "gone")
    a = [record("p", 0, True), record("p", 1, False, failure=failure, score=None, reward=None)]
    b = [record("p", 0, True), record("q", 0, True)]
    found = compare(a, b)
    assert found.mean_a == 1.0
    assert found.problems == 1


def test_evaluations_of_different_data_cannot_be_compared():
    with pytest.raises(DataError, match="no answered problem in common"):
        compare([record("p", 0, True)], [record("q", 0, True)])
    with pytest.raises(DataError, match="not of the same data"):
        compare([record("p", 0, True)], [record("p", 0, True, gold="2")])
