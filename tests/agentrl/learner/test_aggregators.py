"""Weights worked by hand for sequences of 1, 3 and 4 tokens."""

import numpy as np
import pytest

from agentrl.learner.aggregators import ConstantSum, sequence_mean, token_mean

COUNTS = np.array([1, 3, 4])


def test_every_token_weighs_the_same() -> None:
    assert token_mean(COUNTS).tolist() == [0.125, 0.125, 0.125]


def test_every_sequence_weighs_the_same() -> None:
    assert sequence_mean(COUNTS).tolist() == pytest.approx([1 / 3, 1 / 9, 1 / 12])
    assert float(sequence_mean(COUNTS) @ COUNTS) == pytest.approx(1.0)


def test_a_constant_does_not_look_at_lengths() -> None:
    assert ConstantSum(ConstantSum.Settings(length=8.0))(COUNTS).tolist() == pytest.approx([1 / 24] * 3)
