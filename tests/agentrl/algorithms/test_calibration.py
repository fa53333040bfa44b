import math

import numpy as np
import pytest

from agentrl.algorithms.calibration import auc, brier_score, calibration, log_loss


def test_scores_of_predictions() -> None:
    # ((.5)^2 + (.2)^2) / 2 = (.25 + .04) / 2
    assert brier_score([0.5, 0.2], [1, 0]) == pytest.approx(0.145)
    # -(ln .5 + ln .8) / 2 = (.693147 + .223144) / 2
    assert log_loss([0.5, 0.2], [1, 0]) == pytest.approx(0.4581454, abs=1e-6)
    # One certain error costs ln 1000 and not infinity.
    assert log_loss([0.0], [1]) == pytest.approx(math.log(1000))


def test_area_under_the_curve() -> None:
    # Right ones at .9 and .4, wrong ones at .4 and .1: of four pairs three are won and one is tied.
    assert auc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == pytest.approx(3.5 / 4)
    assert auc([0.1, 0.9], [1.0, 0.2]) == 0.0
    assert auc([0.3, 0.3, 0.3], [1, 0, 0]) == 0.5
    assert auc([0.3, 0.6], [1, 1]) is None


def test_reliability_curve() -> None:
    result = calibration([0.1, 0.3, 0.4, 1.0], [0, 1, 0, 1], bins=2)
    assert list(result.counts) == [3, 1]
    assert result.predicted == pytest.approx([0.8 / 3, 1.0])
    assert result.observed == pytest.approx([1 / 3, 1.0])
    assert np.isnan(calibration([0.9], [1], bins=2).predicted[0])
