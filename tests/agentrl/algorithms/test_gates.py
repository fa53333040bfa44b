"""Controllers that follow how well a run does: worked by hand, what they promise, and what they remember."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.advantage import CreditBatch
from agentrl.algorithms.gates import gate
from agentrl.config import registry
from agentrl.config.loading import load_settings
from agentrl.training.control import Control


def batch(*scores: float, values: float = 0.0) -> CreditBatch:
    return CreditBatch(np.array(scores), baselines=np.full(len(scores), values))


def make(kind: str, **own: Any) -> Any:
    return registry.make("controller", kind, own)


def test_the_coefficient_follows_accuracy() -> None:
    part = make("accuracy_kl")
    given_values = [
        part({}, batch(*scores), {})["loss.kl_coefficient"] for scores in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    ]
    # .02 (tanh(a) + 1) / 2 at 0, .5 and 1: tanh .462117, .761594. The trap is the opposite sign.
    assert given_values == pytest.approx([0.01, 0.01462117, 0.01761594])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_coefficient_stays_between_a_half_and_the_whole(scores: list[float]) -> None:
    value = make("accuracy_kl", coefficient=1.0)({}, batch(*scores), {})["loss.kl_coefficient"]
    assert 0.5 <= value < 0.8808


def test_the_coefficient_follows_the_divergence() -> None:
    part = make("target_kl", target=0.01, gain=0.1)
    values = {"loss.kl_coefficient": 0.05}
    # Twice and half of the target are held at +-.2: .05 x 1.02 and .05 x .98; .011 is off by .1: .05 x 1.01.
    given_values = [part({"kl_reference": kl}, batch(0.0), values) for kl in (0.02, 0.005, 0.011, 0.01)]
    assert [one["loss.kl_coefficient"] for one in given_values] == pytest.approx([0.051, 0.049, 0.0505, 0.05])


def test_a_divergence_of_nothing_leaves_a_coefficient_to_return_to() -> None:
    part = make("target_kl", target=0.01, gain=0.1, least=0.01)
    values = {"loss.kl_coefficient": 0.05}
    for _ in range(500):  # .05 x .98^500 would be 2e-6
        values = part({"kl_reference": 0.0}, batch(0.0), values)
    assert values == {"loss.kl_coefficient": 0.01}


def test_the_entropy_bonus_works_below_its_target_only() -> None:
    part = make("target_entropy", target=0.2, step=0.005)
    values, seen = {"loss.entropy_coefficient": 0.01}, []
    # c: .015, .020, .015 (above: not used), .010 (above), .015
    for entropy in (0.1, 0.1, 0.3, 0.3, 0.1):
        values = part({"entropy": entropy}, batch(0.0), values)
        seen.append(values["loss.entropy_coefficient"])
    assert seen == pytest.approx([0.015, 0.02, 0.0, 0.0, 0.015])
    again = make("target_entropy", target=0.2, step=0.005)
    again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert again({"entropy": 0.1}, batch(0.0), values) == part({"entropy": 0.1}, batch(0.0), values)
    for _ in range(9):
        part({"entropy": 0.9}, batch(0.0), values)
    assert part({"entropy": 0.1}, batch(0.0), values)["loss.entropy_coefficient"] == 0.005  # never below 0


def test_the_gate_of_four_batches() -> None:
    # Mean .5, deviation .1: one deviation above is 1.5; far above or below is held at 2 and 0.
    before = [0.4, 0.6, 0.4, 0.6]
    assert [gate(newest, before) for newest in (0.5, 0.6, 0.4, 0.9, 0.0)] == pytest.approx(
        [1.0, 1.5, 0.5, 2.0, 0.0]
    )
    assert gate(0.9, [0.5, 0.5]) == 1.0


def test_improvement_is_measured_against_values() -> None:
    part = make("improvement_gate", rate=1e-5, window=2, least=0.25)
    assert part({}, batch(0.4), {}) == {}
    assert part({}, batch(0.6), {}) == {}
    # Easier prompts, of higher values, are no improvement: .9 - .4 is the mean of the two before.
    assert part({}, batch(0.9, values=0.4), {})["learner.learning_rate"] == pytest.approx(1e-5)
    assert part({}, batch(0.1), {})["learner.learning_rate"] == pytest.approx(0.25e-5)


def test_the_window_is_saved() -> None:
    part, other = make("improvement_gate", window=2), make("improvement_gate", window=2)
    for score in (0.4, 0.6):
        part({}, batch(score), {})
    other.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert other({}, batch(0.9), {}) == part({}, batch(0.9), {})


def test_a_run_takes_them() -> None:
    settings = load_settings(None, ["--controller.kind=accuracy_kl", "--loss.kl_coefficient=0.02"])
    control = Control(settings)
    control.act({}, batch(0.0, 0.0))
    assert control.values == {"loss.kl_coefficient": 0.01}
    control = Control(load_settings(None, ["--controller.kind=improvement_gate"]))
    for score in [0.4, 0.6] * 4:
        control.act({}, batch(score))
    assert control.values == {"learner.learning_rate": 1e-6}
    control.act({}, batch(0.9))
    assert control.values == {"learner.learning_rate": pytest.approx(2e-6)}


def test_a_coefficient_that_is_changed_on_resume_begins_there() -> None:
    def control(coefficient: float) -> Control:
        kind = ["--controller.kind=target_entropy", f"--loss.entropy_coefficient={coefficient}"]
        return Control(load_settings(None, kind))

    first = control(0.05)
    first.act({"entropy": 0.1}, batch(0.0))
    again, changed = control(0.05), control(0.5)
    for one in (again, changed):
        one.load_state_dict(json.loads(json.dumps(first.state_dict())))
        one.act({"entropy": 0.1}, batch(0.0))
    assert again.values["loss.entropy_coefficient"] == pytest.approx(0.06)
    assert changed.values["loss.entropy_coefficient"] == pytest.approx(0.505)
