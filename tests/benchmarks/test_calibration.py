"""The calibration benchmark's own arithmetic, and one short real run of each rule that measures drift."""

import math

import pytest

from benchmarks import calibration
from benchmarks.calibration import reliability, run_one, summarise, table


def row(step, bins, brier=0.2):
    return {
        "step": step,
        "episodes": 64 * step,
        "reward_mean": 0.5,
        "baseline_mean": 0.5,
        "brier": brier,
        "log_loss": 0.6,
        "reliability": bins,
        "clock": 0.1,
        "rho_mean": 0.9,
        "rho_quartiles": [0.875, 0.88, 0.9, 0.92, 0.96],
        "cpu_s": 3.0 * step,
    }


def test_bins_are_pooled_by_their_episodes():
    runs = [{"steps": [row(1, {"2": [10, 0.2, 0.0]}), row(2, {"2": [30, 0.28, 0.4], "9": [4, 0.95, 1.0]})]}]
    assert reliability(runs, 2) == {
        "0.2": (30, pytest.approx(0.28), pytest.approx(0.4)),
        "0.9": (4, 0.95, 1.0),
    }
    # (10 * .2 + 30 * .28) / 40 = .26 and (30 * .4) / 40 = .3
    assert reliability(runs, 1)["0.2"] == (40, pytest.approx(0.26), pytest.approx(0.3))


def test_first_steps_can_be_left_out():
    steps = [row(step, {}, brier=0.3 if step < 9 else 0.1) for step in range(1, 17)]
    run = {"arm": "clock", "seed": 0, "steps": steps}
    assert summarise(run, 1)["brier"] == pytest.approx(0.2)
    assert summarise(run, 9)["brier"] == pytest.approx(0.1)
    assert summarise(run, 9)["cpu_s"] == 48.0
    first, settled = table([run, run | {"seed": 1}])
    assert (first["from_step"], settled["from_step"]) == (1, 9)
    assert settled["brier"] == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arm", ["clock", "replay"])
def test_a_run_of_two_steps(arm, monkeypatch):
    monkeypatch.setattr(calibration, "STEPS", 2)
    steps = run_one(arm, 0)["steps"]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(sum(count for count, _, _ in step["reliability"].values()) == 64 for step in steps)
    assert all(math.isfinite(step["brier"]) for step in steps)
    assert all(0.875 <= step["rho_quartiles"][0] <= step["rho_quartiles"][4] <= 0.96 for step in steps)
