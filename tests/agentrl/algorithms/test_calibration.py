import math

import numpy as np
import pytest

from agentrl.algorithms.calibration import brier_score, calibration, log_loss


def test_scores_of_predictions() -> None:
    # ((.5)^2 + (.2)^2) / 2 = (.25 + .04) / 2
    assert brier_score([0.5, 0.2], [1, 0]) == pytest.approx(0.145)
    # -(ln .5 + ln .8) / 2 = (.693147 + .223144) / 2
    assert log_loss([0.5, 0.2], [1, 0]) == pytest.approx(0.4581454, abs=1e-6)
    # One certain error costs ln 1000 and not infinity.
    assert log_loss([0.0], [1]) == pytest.approx(math.log(1000))


def test_reliability_curve() -> None:
    result = calibration([0.1, 0.3, 0.4, 1.0], [0, 1, 0, 1], bins=2)
    assert list(result.counts) == [3, 1]
    assert result.predicted == pytest.approx([0.8 / 3, 1.0])
    assert result.observed == pytest.approx([1 / 3, 1.0])
    assert np.isnan(calibration([0.9], [1], bins=2).predicted[0])
