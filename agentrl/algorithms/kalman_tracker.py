"""A value tracker that is a Kalman filter of each prompt's success rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from agentrl.algorithms.value_tracker import UNSEEN_COUNT, FloatArray, Fold, ValueTracker
from agentrl.config.ranges import Positive
from agentrl.config.settings import TrackerSettings


class KalmanTracker(ValueTracker):
    """Values by a Kalman filter of each prompt's success rate, over time (KRPO).

    The variance P grows by Q a visit, scores have noise R. With N = R / P the filter is the plain tracker
    whose forgetting factor is 1 / (1 + N Q / R), so a prompt that is known well forgets more, and
    `tracker.drift` is not looked at. Baselines are the filter's *prior* mean. The released code begins a
    filter anew in each group and subtracts the mean after the reward was taken in: then a baseline contains
    its own reward; it also divides by the root of P, which is no deviation of rewards.

    Source: arXiv 2505.07527 (id from memory), code read; without groups and with the prior mean as derived
    here."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `kalman`."""

        process: Positive = 1e-5
        """Q: variance of the success rate that a visit adds."""
        noise: Positive = 1e-2
        """R: variance of a score."""

    def __init__(self, own: Settings, num_prompts: int, settings: TrackerSettings, *more: Any) -> None:
        super().__init__(num_prompts, settings, *more)
        self._ratio = own.process / own.noise
        self._factor = 1.0

    def fold(self, prompt: int, score: float, **options: Any) -> Fold:
        """Fold one score: x = x + K (s - x) with K = 1 / (N' + 1), N' = N / (1 + N Q / R)."""
        count = float(self._alpha[prompt] + self._beta[prompt]) if self._seen[prompt] else UNSEEN_COUNT
        self._factor = 1.0 / (1.0 + count * self._ratio)
        return super().fold(prompt, score, **options)

    def effective_counts(self, prompts: ArrayLike) -> FloatArray:
        """[N] R / P of the prompts [N], with the process noise of the next visit."""
        index = np.asarray(prompts, dtype=np.int64)
        count = np.where(self._seen[index], self._alpha[index] + self._beta[index], UNSEEN_COUNT)
        return count / (1.0 + count * self._ratio)

    def _rho(self, drift: Any) -> Any:
        return self._factor
