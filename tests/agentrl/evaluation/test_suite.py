"""The mean of several tasks, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from agentrl.evaluation.suite import mean_of


def entry(value: float, low: float, high: float) -> dict[str, object]:
    bounds = {"low": low, "high": high}
    return {"value": value, "new_problems": bounds, "same_problems": bounds}


def test_distances_to_the_bounds_add_up_squared():
    # mean (0.5 + 0.9) / 2; below sqrt(0.3^2 + 0.4^2) / 2 = 0.25, above sqrt(0.05^2 + 0.12^2) / 2 = 0.065
    mean = mean_of([entry(0.5, 0.2, 0.55), entry(0.9, 0.5, 1.02)])
    assert mean["value"] == pytest.approx(0.7)
    assert mean["new_problems"]["low"] == pytest.approx(0.45)
    assert mean["same_problems"]["high"] == pytest.approx(0.765)


def test_one_task_keeps_its_interval():
    mean = mean_of([entry(0.5, 0.2, 0.55)])
    assert (mean["new_problems"]["low"], mean["new_problems"]["high"]) == pytest.approx((0.2, 0.55))
