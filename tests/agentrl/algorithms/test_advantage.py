import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agentrl.algorithms.advantage import (
    CreditBatch,
    advantages,
    group_statistics,
    grpo_advantages,
    mixed_groups,
    normalise,
)
from agentrl.config.settings import EstimatorSettings
from agentrl.errors import ConfigError, DataError
from agentrl.training.credit import make_estimator

scores = arrays(np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


def test_advantage_of_two_episodes() -> None:
    raw = advantages([1, 0], [0.5, 0.5])
    assert list(raw) == [0.5, -0.5]
    # mean 0, unbiased deviation sqrt((.25 + .25) / 1) = .70711
    assert normalise(raw, 0.1) == pytest.approx([0.70711, -0.70711], abs=1e-5)


def test_an_all_correct_batch_still_has_signal() -> None:
    # 1 - (.9, .5) = (.1, .5): mean .3, deviation .28284
    assert normalise(advantages([1, 1], [0.9, 0.5]), 0.1) == pytest.approx([-0.70711, 0.70711], abs=1e-5)


def test_the_floor_keeps_a_nearly_solved_batch_small() -> None:
    # (.02, .0): deviation .014142 is below the floor of .1: +-.01 / .1, not +-.70711.
    assert normalise([0.02, 0.0], 0.1) == pytest.approx([0.1, -0.1])


def test_guards() -> None:
    assert list(normalise([0.4], 0.1)) == [0.4]  # one episode has no mean to subtract and no deviation
    assert list(normalise([0.25] * 4, 0.1)) == [0.0] * 4
    assert list(normalise([], 0.1)) == []
    with pytest.raises(ConfigError, match="deviation_floor"):
        normalise([1.0], 0.0)
    with pytest.raises(DataError, match=r"advantages\[1\] is nan"):
        normalise([1.0, math.nan], 0.1)
    with pytest.raises(DataError, match="one number per episode"):
        advantages([1.0, 0.0], [0.5])


def test_the_input_is_not_changed() -> None:
    given_scores = np.array([1.0, 0.0])
    normalise(given_scores, 0.1)
    make_estimator(EstimatorSettings(kind="no_baseline", own={"normalise": "none"}))(
        CreditBatch(given_scores)
    )[0] = 7.0
    assert list(given_scores) == [1.0, 0.0]


@given(scores, st.floats(0.01, 1))
def test_normalised_advantages_have_mean_zero_and_at_most_unit_deviation(
    values: np.ndarray, floor: float
) -> None:
    result = normalise(values, floor)
    if len(values) > 1:
        assert result.mean() == pytest.approx(0.0, abs=1e-9)
        assert result.std(ddof=1) <= 1.0 + 1e-9
        if values.std(ddof=1) >= floor:
            assert result.std(ddof=1) == pytest.approx(1.0)
    # A common lag of all baselines cancels.
    if len(values) > 1:
        assert normalise(values + 0.125, floor) == pytest.approx(result, abs=1e-9)


def test_grpo_of_two_groups() -> None:
    # Group 7: (1, 0, 0, 1): mean .5, unbiased deviation sqrt(1 / 3) = .57735, so +-.86603.
    # Group 9: all 1: zeros. Members may come interleaved.
    result = grpo_advantages([1, 1, 0, 0, 1, 1], [7, 9, 7, 7, 7, 9], floor=0.1)
    assert result == pytest.approx([0.86603, 0, -0.86603, -0.86603, 0.86603, 0], abs=1e-5)
    mean, deviation, size = group_statistics([1, 1, 0, 0, 1, 1], [7, 9, 7, 7, 7, 9])
    assert list(mean) == [0.5, 1, 0.5, 0.5, 0.5, 1]
    assert list(size) == [4, 2, 4, 4, 4, 2]
    assert deviation == pytest.approx([0.57735, 0, 0.57735, 0.57735, 0.57735, 0], abs=1e-5)
    assert list(grpo_advantages([1, 0, 0, 1], [1, 1, 1, 1], floor=None)) == [0.5, -0.5, -0.5, 0.5]


def test_an_episode_alone_in_its_group_learns_nothing() -> None:
    assert list(grpo_advantages([1.0, 0.7], [1, 2], floor=0.1)) == [0.0, 0.0]


def test_dynamic_sampling_keeps_mixed_groups() -> None:
    assert list(mixed_groups([1, 1, 0, 0, 1, 1], [7, 9, 7, 8, 7, 9])) == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]


@given(scores, st.integers(1, 5))
def test_groups_of_equal_scores_get_exact_zeros(values: np.ndarray, modulus: int) -> None:
    groups = np.arange(len(values)) % modulus
    result = grpo_advantages(values + 0.1, groups, floor=0.1)
    assert np.all(result[~mixed_groups(values, groups)] == 0.0)
    for group in range(min(modulus, len(values))):
        assert result[groups == group].sum() == pytest.approx(0.0, abs=1e-9)


def batch(scores: list[float], **more: Any) -> CreditBatch:
    return CreditBatch(
        np.array(scores, dtype=float), **{name: np.array(value) for name, value in more.items()}
    )


def test_estimators() -> None:
    spo = make_estimator(EstimatorSettings())
    assert spo(batch([1, 0], baselines=[0.5, 0.5])) == pytest.approx([0.70711, -0.70711], abs=1e-5)
    plain = make_estimator(EstimatorSettings(own={"normalise": "none"}))
    assert list(plain(batch([1, 0], baselines=[0.25, 0.25]))) == [0.75, -0.25]
    bare = make_estimator(EstimatorSettings(kind="no_baseline"))
    assert bare(batch([1, 0])) == pytest.approx([0.70711, -0.70711], abs=1e-5)
    grpo = make_estimator(EstimatorSettings(kind="grpo", group_size=2, own={"dynamic_sampling": True}))
    given = batch([1, 0, 1, 1], groups=[0, 0, 1, 1])
    assert grpo(given) == pytest.approx([0.70711, -0.70711, 0, 0], abs=1e-5)
    assert list(grpo.keep(given)) == [True, True, False, False]  # type: ignore[attr-defined]
    assert getattr(spo, "keep", None) is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kind": "spo", "group_size": 8}, "group_size = 1"),
        ({"kind": "no_baseline", "group_size": 2}, "group_size = 1"),
        ({"kind": "grpo"}, "at least 2"),
        ({"own": {"dynamic_sampling": True}}, "estimator.dynamic_sampling is no setting of"),
        ({"kind": "rlo"}, "known: spo, grpo, no_baseline"),
        ({"own": {"deviation_floor": 0.0}}, "estimator.deviation_floor = 0.0 must be above 0"),
    ],
)
def test_wrong_combinations_fail_at_once(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_estimator(EstimatorSettings(**settings))  # type: ignore[arg-type]


def test_a_batch_that_does_not_fit_its_estimator() -> None:
    with pytest.raises(DataError, match="baselines"):
        make_estimator(EstimatorSettings())(batch([1.0, 0.0]))
    grpo = make_estimator(EstimatorSettings(kind="grpo", group_size=2))
    with pytest.raises(DataError, match="group of every episode"):
        grpo(batch([1.0, 0.0]))
