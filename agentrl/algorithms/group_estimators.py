"""Estimators that compare the episodes of a group, beside GRPO's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.algorithms.advantage import (
    CreditBatch,
    FloatArray,
    Normalising,
    given_groups,
    group_statistics,
    mixed_groups,
    normalise,
)
from agentrl.config.part import Part
from agentrl.config.ranges import Amount, Positive
from agentrl.episode import Episode
from agentrl.errors import DataError


def leave_one_out(scores: ArrayLike, groups: ArrayLike) -> FloatArray:
    """[B] score less the mean of the others of its group; 0 where there are no others.

    Args:
        scores: [B]
        groups: [B] group of each episode.
    """
    mean, _, size = group_statistics(scores, groups)
    centred = (np.asarray(scores, dtype=np.float64) - mean) * size / np.maximum(size - 1.0, 1.0)
    return np.where(mixed_groups(scores, groups), centred, 0.0)


class RLOOEstimator(Normalising):
    """Score less the mean of the others of its group (RLOO).

    No episode is in its own baseline, so the gradient is unbiased. Normalised over the batch it is
    REINFORCE++ with the group's mean as its baseline.

    Source: arXiv 2402.14740, formula as it is commonly given; normalised arXiv 2501.03262, a third party's
    description read.
    """

    requires = ("groups",)

    @dataclass(frozen=True, slots=True)
    class Settings(Normalising.Settings):
        """Settings of `rloo`."""

        normalise: Literal["batch", "none"] = "none"
        """Subtract the mean of the batch and divide by its deviation, or leave advantages as they are."""

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs groups."""
        return self._normalised(leave_one_out(batch.scores, given_groups(batch)))


def hardness_weights(means: ArrayLike, temperature: float) -> FloatArray:
    """[V] V softmax(-mean / temperature): prompts that are seldom solved weigh more; their mean is 1.

    Args:
        means: [V] success rate of each prompt.
        temperature: how little the means matter.
    """
    exponents = np.exp(-(np.asarray(means, dtype=np.float64) - np.min(means)) / temperature)
    return len(exponents) * exponents / exponents.sum()


class DGPOEstimator(Part["DGPOEstimator.Settings"]):
    """Score less its group's mean, over the mean absolute deviation, hard groups weighted up (DGPO).

    The mean absolute advantage of every mixed group is 1 (DGAE). Groups whose scores are all equal get 0, and
    what their tokens take from the mean over tokens is given to the others. The weight of a group is
    V softmax(-mean / temperature) over the V mixed groups, a group without a right answer counting as solved
    (DQW).

    Source: MathForge, code read (`grpo_trainer.py`; arXiv id not known).
    """

    requires = ("groups",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `dgpo`."""

        temperature: Amount = 2.0
        """Of the weights of hard groups; 0 weighs all groups alike."""

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs groups."""
        groups = given_groups(batch)
        mean, _, size = group_statistics(batch.scores, groups)
        centred = batch.scores - mean
        mixed = mixed_groups(batch.scores, groups)
        absolute = group_statistics(np.abs(centred), groups)[0] * size
        result = np.where(mixed, centred * size / (absolute + 1e-4), 0.0)
        if not mixed.any():
            return result
        return result * self._weights(batch.scores, groups, mean, mixed) * tokens_share(batch, mixed)

    def _weights(
        self, scores: FloatArray, groups: NDArray[np.int64], mean: FloatArray, mixed: NDArray[np.bool_]
    ) -> FloatArray:
        """[B] of each episode's group."""
        weights = np.ones(len(scores))
        if self.settings.temperature > 0.0:
            solved = group_statistics(scores > 0.5, groups)[0] > 0.0
            _, first, member_of = np.unique(groups[mixed], return_index=True, return_inverse=True)
            rate = np.where(solved, mean, 1.0)[mixed][first]
            weights[mixed] = hardness_weights(rate, self.settings.temperature)[member_of]
        return weights


def tokens_share(batch: CreditBatch, chosen: NDArray[np.bool_]) -> float:
    """All tokens learned from over those of some episodes, [B]."""
    tokens = np.array([one.num_trainable for one in batch.episodes] or np.ones(len(chosen)))
    return float(tokens.sum() / max(tokens[chosen].sum(), 1))


def reward_parts(episodes: Sequence[Episode]) -> Mapping[str, FloatArray]:
    """[B] of each named part of the reward; 0 where an episode has not got it (one that was cut off).

    Raises:
        DataError: no episode has a part.
    """
    names = sorted({name for episode in episodes for name in episode.reward_parts})
    if not names:
        raise DataError(
            "the rewards of this batch have no parts: an environment names them by returning a table from "
            "`reward`, for example {'correct': 1.0, 'format': 0.5}"
        )
    return {name: np.array([one.reward_parts.get(name, 0.0) for one in episodes]) for name in names}


class GDPOEstimator(Part["GDPOEstimator.Settings"]):
    """Each named part of the reward is normalised in its group, then parts are added and whitened (GDPO).

    A part of small range is not drowned by one of large range, and episodes that earned the same sum by other
    parts are told apart. The score, and so a shaper, is not looked at.

    Source: arXiv 2601.05242, code read in verl.
    """

    requires = ("groups",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `gdpo`."""

        weights: dict[str, float] = field(default_factory=dict[str, float])
        """Of parts by name, for example `{correct = 1.0, format = 0.5}`; parts not named weigh 1."""
        deviation_floor: Positive = 0.1
        """Smallest deviation of the sum over the batch divided by."""

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs groups and episodes."""
        groups = given_groups(batch)
        total = np.zeros(len(batch.scores))
        parts = reward_parts(batch.episodes)
        if unknown := set(self.settings.weights) - set(parts):
            raise DataError(f"estimator.weights names {sorted(unknown)}; the parts are {sorted(parts)}")
        for name, values in parts.items():
            mean, deviation, _ = group_statistics(values, groups)
            mixed = mixed_groups(values, groups)
            normal = np.where(mixed, (values - mean) / (deviation + 1e-6), 0.0)
            total += self.settings.weights.get(name, 1.0) * normal
        return normalise(total, self.settings.deviation_floor)
