"""Estimators that choose which episodes of a batch are learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.advantage import CreditBatch, FloatArray, advantages, given_baselines, normalise
from agentrl.algorithms.group_estimators import tokens_share
from agentrl.config.ranges import Number, Positive, Range
from agentrl.episode import Episode


def most_varied(values: FloatArray, count: int) -> NDArray[np.bool_]:
    """[B] the `count` values whose variance is largest: so many of the lowest, and the rest of the
    highest."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    low = np.arange(count + 1)
    start = len(values) - (count - low)
    total = sums[low] + sums[-1] - sums[start]
    square = squares[low] + squares[-1] - squares[start]
    best = int(np.argmax(square / count - (total / count) ** 2))
    kept = np.zeros(len(values), dtype=np.bool_)
    kept[order[:best]] = True
    kept[order[start[best] :]] = True
    return kept


class D3SEstimator:
    """SPO's advantages of the episodes that vary most, the others left out (D3S, its sample level).

    `share` of the episodes of a batch are kept, the most positive and the most negative ones, so that the
    variance of their advantages is largest. They were normalised with all others and are not normalised
    again; what the others take from the mean over tokens is given to them. Over `anneal` episodes the share
    rises to 1: without that the paper overfits late.

    Source: arXiv 2509.22115, reading notes with equations; the shares it starts from were not found.
    """

    requires = ("baselines",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `d3s`."""

        share: Annotated[float, Range(above=0, most=1)] = 0.5
        """Of the episodes of a batch that are learned from, at the start."""
        anneal: Number = 0
        """Episodes over which the share rises to 1; 0 keeps it."""
        normalise: Literal["batch", "none"] = "batch"
        """Subtract the mean of the batch and divide by its deviation, or leave advantages as they are."""
        deviation_floor: Positive = 0.1
        """Smallest deviation divided by."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folded = 0

    @property
    def share(self) -> float:
        """Of the next batch."""
        settings = self._settings
        progress = min(self._folded / settings.anneal, 1.0) if settings.anneal else 0.0
        return settings.share + (1.0 - settings.share) * progress

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs baselines."""
        raw = advantages(batch.scores, given_baselines(batch))
        if self._settings.normalise == "batch":
            raw = normalise(raw, self._settings.deviation_floor)
        kept = most_varied(raw, max(round(self.share * len(raw)), 1))
        return np.where(kept, raw, 0.0) * tokens_share(batch, kept)

    def fold(self, episode: Episode) -> None:
        """Count an episode."""
        self._folded += 1

    def state_dict(self) -> dict[str, Any]:
        """Episodes that were folded."""
        return {"folded": self._folded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self._folded = int(state["folded"])
