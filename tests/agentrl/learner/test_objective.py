"""A loss from a file: what it computes over the whole batch is there in every micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agentrl.episode import Episode
from agentrl.errors import ConfigError
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


SEES_ALL = """
import torch

class SeesAll:
    requires = ("teacher", "baselines")
    top_k = 3

    def __call__(self, inputs):
        assert inputs.top_ids.shape == inputs.top_logprobs.shape == (len(inputs.current), 3)
        return -inputs.current * inputs.advantage, {
            "value": inputs.value,
            "segment": inputs.segment.float(),
            "turn": inputs.turn.float(),
            "logit": (inputs.logit - inputs.logsumexp - inputs.current).abs(),
            "teacher_gap": (inputs.teacher - inputs.proximal).abs(),
            "ordered": (inputs.top_logprobs[:, :-1] >= inputs.top_logprobs[:, 1:]).all(-1).float(),
        }
"""


def test_a_loss_sees_values_segments_turns_the_likeliest_and_a_teacher(
    tmp_path: Path,
    make_learner: Callable[..., Learner],
    make_episode: Callable[..., Episode],
    model_folder: Path,
) -> None:
    (tmp_path / "sees.py").write_text(SEES_ALL)
    # e0 says 3 tokens, then 1; e1 has two segments, of 2 and 4 tokens.
    one = make_episode(0, turns=((3, 2), (1, 0)))
    first, second = make_episode(1, turns=((2, 0),)), make_episode(2, turns=((4, 0),))
    two = replace(first, segments=(*first.segments, *second.segments))
    learner = make_learner(kind=f"{tmp_path / 'sees.py'}:SeesAll", teacher=str(model_folder))
    seen = learner.step([one, two], [1.0, -1.0], values=[0.25, 0.75]).of_loss
    # Of 10 tokens: 4 of value 0.25 and 6 of 0.75; 4 in a second segment; 1 in a second message.
    assert seen["value"] == pytest.approx((4 * 0.25 + 6 * 0.75) / 10)
    assert seen["segment"] == pytest.approx(4 / 10)
    assert seen["turn"] == pytest.approx(1 / 10)
    assert seen["logit"] == pytest.approx(0.0, abs=1e-5)
    assert seen["ordered"] == 1.0
    # Before its first step the learner is its own teacher; after it, it is not.
    assert seen["teacher_gap"] == pytest.approx(0.0, abs=1e-5)
    later = learner.step([one, two], [1.0, -1.0], values=[0.25, 0.75]).of_loss
    assert later["teacher_gap"] > 1e-3


def test_a_loss_that_requires_a_teacher_is_refused_without_its_weights(
    tmp_path: Path, make_learner: Callable[..., Learner]
) -> None:
    (tmp_path / "sees.py").write_text(SEES_ALL)
    with pytest.raises(ConfigError, match=r"SeesAll' requires a teacher: name its weights, loss.teacher"):
        make_learner(kind=f"{tmp_path / 'sees.py'}:SeesAll")


@pytest.mark.parametrize("mini_batch", [64, 3])
def test_what_a_step_tells_of_tokens_is_what_the_weights_before_it_said(
    make_learner: Callable[..., Learner], episodes: list[Episode], advantages: list[float], mini_batch: int
) -> None:
    # Fails when the values are taken after the first optimizer step, or in the order of micro-batches.
    learner = make_learner(mini_batch=mini_batch, micro_batch_tokens=40, top_k=2)
    before = learner.score(episodes)
    values = learner.step(episodes, advantages).token_values
    assert values is not None
    assert values.segments.tolist() == [[place, len(e.segments[0])] for place, e in enumerate(episodes)]
    assert values.runs[:, 2].sum() == len(values.logprobs) == sum(e.num_trainable for e in episodes)
    at = 0
    for segment, first, count in values.runs.tolist():
        expected = before[segment][0][first : first + count]
        np.testing.assert_allclose(values.logprobs[at : at + count], expected, atol=1e-5)
        assert episodes[segment].segments[0].loss_mask[first : first + count] == b"\x01" * count
        at += count
    assert values.top_ids is not None
    assert values.top_logprobs is not None
    assert (values.top_logprobs[:, 0] >= values.top_logprobs[:, 1]).all()
    assert (values.entropies > 0).all()


def test_a_learner_takes_rate_and_coefficients_of_a_step(
    make_learner: Callable[..., Learner], episodes: list[Episode], advantages: list[float]
) -> None:
    learner = make_learner()
    rate = {"learner.learning_rate": 0.005}
    assert learner.step(episodes, advantages, controls=rate).learning_rate == 0.005
    assert learner.step(episodes, advantages).learning_rate == 0.005  # until it is told otherwise
    plain = learner.step(episodes, advantages, controls={"learner.learning_rate": 0.0})
    bonus = learner.step(episodes, advantages, controls={"loss.entropy_coefficient": 0.5})
    assert bonus.loss == pytest.approx(plain.loss - 0.5 * plain.entropy, abs=1e-4)
