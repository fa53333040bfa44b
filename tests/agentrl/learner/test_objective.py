"""A loss from a file: what it computes over the whole batch is there in every micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl.episode import Episode
from agentrl.learner.learner import Learner

LOSS = """
class Centred:
    def statistics(self, inputs):
        return {"mean": inputs.advantage.mean(), "tokens": inputs.advantage.new_tensor(len(inputs.advantage))}

    def __call__(self, inputs):
        seen = inputs.statistics
        centred = inputs.advantage - seen["mean"]
        ones = centred * 0 + 1
        return -inputs.current * centred, {"mean": ones * seen["mean"], "tokens": ones * seen["tokens"]}
"""


@pytest.mark.parametrize("mini_batch", [64, 3])
def test_statistics_are_of_the_whole_batch(
    tmp_path: Path,
    make_learner: Callable[..., Learner],
    episodes: list[Episode],
    advantages: list[float],
    mini_batch: int,
) -> None:
    (tmp_path / "centred.py").write_text(LOSS)
    kind = f"{tmp_path / 'centred.py'}:Centred"
    learner = make_learner(kind=kind, mini_batch=mini_batch, micro_batch_tokens=20)
    metrics = learner.step(episodes, advantages)
    sampled = [episode.num_trainable for episode in episodes]
    mean = sum(count * advantage for count, advantage in zip(sampled, advantages, strict=True)) / sum(sampled)
    assert metrics.of_loss["tokens"] == sum(sampled)
    assert metrics.of_loss["mean"] == pytest.approx(mean, abs=1e-6)
