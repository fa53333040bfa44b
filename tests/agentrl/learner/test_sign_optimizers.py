"""Optimizers that step by signs: four weights worked by hand, what each promises, and a resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from agentrl.episode import Episode
from agentrl.errors import CheckpointError
from agentrl.learner.learner import Learner
from agentrl.learner.sign_optimizers import Lion, StoSignSGD


def weights(*values: float) -> Any:
    return torch.nn.Parameter(torch.tensor(values))


def test_lion() -> None:
    it = weights(1.0, -1.0, 0.5, 0.0)
    lion = Lion([{"params": [it], "weight_decay": 0.5}], lr=0.1, betas=(0.9, 0.99))
    it.grad = torch.tensor([1.0, -2.0, 0.0, 3.0])
    lion.step()
    # Decayed by 1 - .05, then minus .1 sign(.1 g).
    assert it.tolist() == pytest.approx([0.85, -0.85, 0.475, -0.1])
    assert lion.state[it]["exp_avg"].tolist() == pytest.approx([0.01, -0.02, 0.0, 0.03])
    # .9 * .03 - .1 * .2 = .007: the sign is the momentum's, against the gradient.
    it.grad = torch.tensor([0.0, 0.0, 0.0, -0.2])
    lion.step()
    assert float(it[3].detach()) == pytest.approx(-0.095 - 0.1)


def test_lion_draws_weights_into_its_box() -> None:
    it = weights(9.0, -9.0)
    lion = Lion([{"params": [it], "weight_decay": 0.5}], lr=0.1, betas=(0.9, 0.99))
    for _ in range(200):
        it.grad = torch.tensor([-1.0, 1.0])
        lion.step()
    assert it.tolist() == pytest.approx([2.0, -2.0], abs=1e-2)  # 1 / .5


def test_sto_sign_is_right_on_average() -> None:
    # Momentum after one step is .1 g. The largest is remembered: after g = 1 then small ones, E[sign] = m / G.
    it = torch.nn.Parameter(torch.zeros(40_000))
    sgd = StoSignSGD([{"params": [it], "weight_decay": 0.0}], lr=1.0, betas=(0.0, 0.0))
    it.grad = torch.ones_like(it)
    sgd.step()
    assert it.tolist()[:3] == [-1.0, -1.0, -1.0]  # at the largest momentum the sign is sure
    before = it.detach().clone()
    it.grad = torch.full_like(it, 0.25)
    sgd.step()
    steps = before - it.detach()
    assert set(steps.tolist()) == {-1.0, 1.0}
    assert float(steps.mean()) == pytest.approx(0.25, abs=0.02)
    assert sgd.state[it]["exp_avg_max"].tolist()[:2] == [1.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["lion", "sto_sign"])
def test_a_learner_goes_on_from_its_checkpoint_bit_for_bit(
    make_learner: Callable[..., Learner],
    episodes: list[Episode],
    advantages: list[float],
    optimizer: str,
    dtype: str,
    tmp_path: Path,
) -> None:
    def make() -> Learner:
        return make_learner(optimizer=optimizer, learning_rate=1e-3, dtype=dtype)

    learner, other = make(), make()
    learner.step(episodes, advantages)
    tmp_path.joinpath("state").mkdir()
    learner.save(tmp_path / "state")
    other.load(tmp_path / "state")
    learner.step(episodes, advantages)
    other.step(episodes, advantages)
    for one, two in zip(learner.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_state_of_another_optimizer_is_refused(
    make_learner: Callable[..., Learner], episodes: list[Episode], advantages: list[float], tmp_path: Path
) -> None:
    learner = make_learner(optimizer="lion")
    learner.step(episodes, advantages)
    learner.save(tmp_path)
    with pytest.raises(CheckpointError, match="saved optimizer is not 'sto_sign': resume with the"):
        make_learner(optimizer="sto_sign").load(tmp_path)
