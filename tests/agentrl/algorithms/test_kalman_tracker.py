"""The Kalman tracker: the filter's equations, four scores worked by hand, and the trap of the released code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agentrl.config import registry
from agentrl.config.settings import TrackerSettings

SCORES = (1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0)


def make(**own: float) -> Any:
    return registry.make("tracker", "kalman", own, 2, TrackerSettings())


def test_four_scores() -> None:
    it = make(process=1e-3)  # Q / R = .1
    seen = [it.fold(0, score, start_clock=0.0) for score in SCORES[:4]]
    # N 1 -> .909091, K .523810: .5 -> .761905; N 1.909091 -> 1.603053, K .384164: .469208;
    # N 2.603053 -> 2.065415, K .326220: .642363; N 3.065415 -> 2.346223, K .298845: .749241.
    assert [fold.value_after for fold in seen] == pytest.approx(
        [0.761905, 0.469208, 0.642363, 0.749241], abs=1e-5
    )
    assert [fold.value_before for fold in seen[1:]] == [fold.value_after for fold in seen[:3]]


def test_it_is_the_kalman_filter() -> None:
    it, mean, variance = make(), 0.5, 1e-2
    for score in SCORES:
        fold = it.fold(0, score, start_clock=0.0)
        assert fold.value_before == pytest.approx(mean)
        variance += 1e-5
        gain = variance / (variance + 1e-2)
        mean, variance = mean + gain * (score - mean), (1 - gain) * variance
        assert fold.value_after == pytest.approx(mean)
        prior = variance + 1e-5
        assert float(it.effective_counts([0])[0]) == pytest.approx(1e-2 / prior)


def test_no_score_is_in_its_own_baseline() -> None:
    one, other = make(), make()
    for it in (one, other):
        it.fold(0, 1.0, start_clock=0.0)
    assert one.fold(0, 0.0, start_clock=0.0).value_before == other.fold(0, 1.0, start_clock=0.0).value_before
    # The trap: the mean after the reward, over the root of the filter's own variance, has no scale.
    mean, variance, released = 0.0, 1.0, []
    for score in SCORES[:3]:
        variance += 1e-5
        gain = variance / (variance + 1e-2)
        mean, variance = mean + gain * (score - mean), (1 - gain) * variance
        released.append((score - mean) / (math.sqrt(variance) + 1e-8))
    assert released == pytest.approx([0.1, -7.1, 5.8], abs=0.06)


def test_it_goes_on_from_its_state_and_follows_a_policy_that_learns() -> None:
    it, other = make(process=1e-3), make(process=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(100):
        it.fold(1, float(rng.random() < 0.2), start_clock=0.0)
    assert float(it.values([1])[0]) == pytest.approx(0.2, abs=0.2)
    for _ in range(100):
        it.fold(1, float(rng.random() < 0.9), start_clock=0.0)
    assert float(it.values([1])[0]) == pytest.approx(0.9, abs=0.2)
    other.load_state_dict(it.state_dict())
    assert other.fold(1, 1.0, start_clock=0.0) == it.fold(1, 1.0, start_clock=0.0)
