"""Estimators that need the tracker's values and no groups, beside SPO's.

Where a paper takes a statistic of a group, these take the value of the prompt: read before any score of the
batch is folded, so that no baseline contains the reward it is subtracted from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.algorithms.advantage import (
    CreditBatch,
    FloatArray,
    Normalising,
    advantages,
    given_baselines,
    normalise,
)
from agentrl.algorithms.group_estimators import hardness_weights
from agentrl.config.part import Part
from agentrl.config.ranges import Amount, Positive, Range


def beta_density(values: ArrayLike, alpha: float, beta: float) -> FloatArray:
    """[N] density of the Beta distribution at values inside of (0, 1)."""
    array = np.asarray(values, dtype=np.float64)
    constant = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return np.exp(constant + (alpha - 1.0) * np.log(array) + (beta - 1.0) * np.log1p(-array))


class BNPOEstimator(Part["BNPOEstimator.Settings"]):
    """Score less value, over the density of values in the batch (BNPO).

    A Beta distribution is fitted to the values v of the batch by its mean and variance; with alpha and beta
    moved to max(1, 1 + a / 3) and max(1, 1 + b / 3), an episode weighs 1 / density(v). Values that are rare
    in the batch weigh more. The paper's v is the success rate of a group; its code takes 0 for a group of
    one, where the weight is its bound for every prompt.

    Source: arXiv 2506.02864, code read.
    """

    requires = ("baselines",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `bnpo`."""

        weight_max: Positive = 1e6
        """Largest weight of an episode."""

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs baselines."""
        values = given_baselines(batch)
        mean, variance = float(values.mean()), float(values.var())
        if variance <= 1e-12:
            return advantages(batch.scores, values)  # nothing is rare
        spread = mean * (1.0 - mean) / variance - 1.0
        alpha, beta = max(1.0, 1.0 + spread * mean / 3.0), max(1.0, 1.0 + spread * (1.0 - mean) / 3.0)
        density = beta_density(np.clip(values, 1e-6, 1.0 - 1e-6), alpha, beta)
        weights = 1.0 / np.maximum(density, 1.0 / self.settings.weight_max)
        return weights * advantages(batch.scores, values)


class DGPOValueEstimator(Part["DGPOValueEstimator.Settings"]):
    """Score less value, over the mean absolute deviation 2 v (1 - v), hard prompts weighted up (DGPO, no
    groups).

    With rewards of 0 and 1 the mean absolute advantage is 1 at every v. Weights are
    B softmax(-v / temperature) over the batch: do not add a sampler that prefers hard prompts.

    Source: MathForge, code read; the closed form with v is derived: E|r - v| = 2 v (1 - v).
    """

    requires = ("baselines",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `dgpo_value`."""

        temperature: Amount = 2.0
        """Of the weights of hard prompts; 0 weighs all alike."""
        bound: Positive = 5.0
        """Advantages are clipped at +-bound before they are weighted: a lucky answer at v = .1 has 5."""

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs baselines."""
        values, bound = given_baselines(batch), self.settings.bound
        raw = advantages(batch.scores, values) / (2.0 * values * (1.0 - values) + 1e-4)
        result = np.clip(raw, -bound, bound)
        if self.settings.temperature > 0.0:
            result = result * hardness_weights(values, self.settings.temperature)
        return result


class ASPOEstimator(Part["ASPOEstimator.Settings"]):
    """SPO's advantages, larger for right answers that called a tool early (ASPO of tool-integrated
    reasoning).

    A' = A + clip(delta (p - mean p) / mean L, -k A, k A) for right answers with a call and A > 0; p is where
    the first call ends and L the length, in sampled tokens, their means are over such answers of the batch
    (the paper: of the group). As k < 1 no sign changes. The same wish added to the reward makes right answers
    negative once advantages are centred: that collapses (paper).

    Source: arXiv 2508.19201, equation 2, text read; delta and k of a third party's recipe.
    """

    requires = ("baselines",)

    @dataclass(frozen=True, slots=True)
    class Settings(Normalising.Settings):
        """Settings of `aspo`."""

        delta: Annotated[float, Range(most=0)] = -2.0
        """Weight of an early call; negative."""
        bound: Annotated[float, Range(least=0, below=1)] = 0.7
        """k: largest change, as a share of the advantage."""

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs baselines and episodes."""
        settings = self.settings
        result = advantages(batch.scores, given_baselines(batch))
        if settings.normalise == "batch":
            result = normalise(result, settings.deviation_floor)
        found = [episode.tokens_to_first_call for episode in batch.episodes]
        called = np.array([one is not None for one in found], dtype=np.bool_)
        moved = called & (batch.scores > 0.5) & (result > 0.0)
        return result + self._bias(batch, found, result, moved) if moved.any() else result

    def _bias(
        self, batch: CreditBatch, found: list[int | None], result: FloatArray, moved: NDArray[np.bool_]
    ) -> FloatArray:
        """[B] what an early call adds."""
        calls = np.array([one or 0 for one in found], dtype=np.float64)
        lengths = np.array([episode.num_sampled for episode in batch.episodes], dtype=np.float64)
        wish = self.settings.delta * (calls - calls[moved].mean()) / lengths[moved].mean()
        most = self.settings.bound * np.abs(result)
        return np.where(moved, np.clip(wish, -most, most), 0.0)
