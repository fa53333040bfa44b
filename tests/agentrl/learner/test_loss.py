"""Literal numbers are worked by hand from paper equation 10 and `docs/spo.md`."""

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given
from hypothesis import strategies as st

from agentrl.learner.losses.clipped import (
    ClippedLoss,
    LossInputs,
    clipped_surrogate,
    effective_share,
    importance_weights,
    k3,
    log_ratio,
    with_regularisers,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}


def inputs(
    current: torch.Tensor,
    proximal: torch.Tensor,
    behaviour: torch.Tensor,
    advantage: torch.Tensor,
    **more: Any,
) -> LossInputs:
    places = torch.arange(len(current))
    more = {"entropy": torch.zeros_like(current), "sequence": torch.zeros_like(places), "turn": places} | more
    more = {"logsumexp": torch.zeros_like(current), "segment": torch.zeros_like(places)} | more
    return LossInputs(
        current=current, proximal=proximal, behaviour=behaviour, advantage=advantage, position=places, **more
    )


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_clipped_surrogate() -> None:
    ratio = t(1.0, 1.5, 1.5, 0.5, 0.5, 20.0)
    advantage = t(2.0, 1.0, -1.0, 1.0, -1.0, -1.0)
    result = clipped_surrogate(ratio, advantage, **CLIP)
    # -1*2; -min(1.5, 1.28); -min(-1.5, -1.28) = 1.5; -min(.5, .8); -min(-.5, -.8) = .8;
    # 20 is bounded by the dual clip to 10.
    assert result.loss.tolist() == pytest.approx([-2.0, -1.28, 1.5, -0.5, 0.8, 10.0])
    assert result.clipped_low.tolist() == [False, False, False, False, True, False]
    assert result.clipped_high.tolist() == [False, True, False, False, False, False]
    assert result.clipped_dual.tolist() == [False, False, False, False, False, True]
    unbounded = clipped_surrogate(ratio, advantage, clip_low=0.2, clip_high=0.28, dual_clip=0.0)
    assert unbounded.loss[-1] == 20.0


def test_gradients_stop_where_the_clip_acts() -> None:
    ratio = t(1.0, 1.5, 1.5, 0.5, 0.5, 20.0).requires_grad_()
    clipped_surrogate(ratio, t(2.0, 1.0, -1.0, 1.0, -1.0, -1.0), **CLIP).loss.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [-2.0, 0.0, 1.0, -1.0, 0.0, 0.0]


def test_log_ratio_is_clamped() -> None:
    assert log_ratio(t(-1.0, 0.0, -90.0), t(-1.5, -90.0, 0.0)).tolist() == [0.5, 20.0, -20.0]


@pytest.mark.parametrize(
    ("mode", "applied", "outside"),
    # Weights 1, 3 and .25; the mask keeps [.5, 2].
    [
        ("truncate", [1, 2, 0.25], [False, True, False]),
        ("bound", [1, 2, 0.5], [False, True, True]),
        ("mask", [1, 0, 0], [False, True, True]),
        ("both", [1, 0, 0], [False, True, True]),
        ("metrics", [1, 1, 1], [False, True, True]),
        ("off", [1, 1, 1], [False, False, False]),
    ],
)
def test_importance_weights(mode: str, applied: list[float], outside: list[bool]) -> None:
    proximal = t(-1.0, math.log(0.3), math.log(0.1))
    behaviour = t(-1.0, math.log(0.1), math.log(0.4))
    result = importance_weights(log_ratio(proximal, behaviour), mode, low=0.5, high=2.0)  # type: ignore[arg-type]
    assert result.applied.tolist() == pytest.approx(applied)
    assert result.outside.tolist() == outside
    assert result.raw.tolist() == pytest.approx([1, 1, 1] if mode == "off" else [1, 3, 0.25])


def test_the_two_switches_are_independent() -> None:
    # w = 1.5 lies inside: `mask` leaves the token as it is, `both` multiplies it too.
    proximal, behaviour = t(math.log(0.3)), t(math.log(0.2))
    for mode, expected in (("truncate", 1.5), ("mask", 1.0), ("both", 1.5)):
        weights = importance_weights(log_ratio(proximal, behaviour), mode, low=0.5, high=2.0)  # type: ignore[arg-type]
        assert float(weights.applied) == pytest.approx(expected)


def test_effective_share() -> None:
    # Weights 1, 1, 2: 4^2 / (6 * 3) = .8889
    assert effective_share(4.0, 6.0, 3) == pytest.approx(0.888889, abs=1e-6)
    assert effective_share(3.0, 3.0, 3) == 1.0
    assert effective_share(0.0, 0.0, 0) == 0.0


def test_k3() -> None:
    # x = log(.2 / .1) = .693147: 2 - .693147 - 1 = .306853
    assert float(k3(t(math.log(0.1)), t(math.log(0.2)))) == pytest.approx(0.306853, abs=1e-6)
    assert float(k3(t(-1.0), t(-1.0))) == 0.0


def test_the_loss_of_a_token_by_three_policies() -> None:
    # behaviour .2, proximal .3, current .33: ratio 1.1 (inside the clip), weight 1.5, A = -2.
    # surrogate 2.2, times 1.5 = 3.3; k3 to a reference of .33 adds nothing; entropy 1 at .01 takes .01.
    current = t(math.log(0.33)).requires_grad_()
    it = inputs(
        current, t(math.log(0.3)), t(math.log(0.2)), t(-2.0), reference=t(math.log(0.33)), entropy=t(1.0)
    )
    loss, metrics = ClippedLoss(ClippedLoss.Settings())(it)
    assert float(loss.detach()) == pytest.approx(3.3, abs=1e-5)
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "clip_low": [False],
        "clip_high": [False],
        "clip_dual": [False],
        "importance_outside": [False],
    }
    loss = with_regularisers(loss, it, kl_coefficient=0.5, entropy_coefficient=0.01)
    assert float(loss.detach()) == pytest.approx(3.29, abs=1e-5)
    # d loss / d log current = weight * ratio * -A = 1.5 * 1.1 * 2 (the weight itself has no gradient,
    # and k3 is flat where current equals the reference).
    loss.sum().backward()
    assert current.grad is not None
    assert float(current.grad) == pytest.approx(3.3, abs=1e-5)


@given(
    st.lists(st.floats(-5, 0), min_size=1, max_size=20),
    st.floats(-3, 3),
    st.sampled_from(["truncate", "bound", "mask", "both", "metrics", "off"]),
)
def test_with_equal_policies_the_loss_is_minus_the_advantage(
    logprobs: list[float], advantage: float, mode: str
) -> None:
    it = torch.tensor(logprobs)
    loss, _ = ClippedLoss(ClippedLoss.Settings(importance=mode))(  # type: ignore[arg-type]
        inputs(it, it, it, torch.full_like(it, advantage))
    )
    assert loss.tolist() == pytest.approx([-advantage] * len(logprobs), abs=1e-6)


def test_the_mean_of_each_sequence() -> None:
    it = inputs(t(0, 0, 0), t(0, 0, 0), t(0, 0, 0), t(1, 1, 1), sequence=torch.tensor([0, 0, 1]))
    assert it.sequence_mean(t(1.0, 3.0, 5.0)).tolist() == [2.0, 2.0, 5.0]
