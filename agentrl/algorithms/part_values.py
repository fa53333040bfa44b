"""GDPO for single episodes: a memory of each named part of the reward, by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from agentrl.algorithms.advantage import CreditBatch, FloatArray, normalise
from agentrl.algorithms.group_estimators import reward_parts
from agentrl.config.ranges import Positive, Range
from agentrl.episode import Episode
from agentrl.errors import DataError

Moments = tuple[float, float, float]
"""Effective count, mean and mean square of a part."""

PRIOR: Moments = (1.0, 0.5, 0.5)
"""Of a part before any was seen: one flip of a coin."""


def with_one_more(moments: Moments, value: float, rho: float) -> Moments:
    """Fold a value: what was there weighs rho as much."""
    count, mean, square = rho * moments[0] + 1.0, moments[1], moments[2]
    return count, mean + (value - mean) / count, square + (value**2 - square) / count


def shrunk(own: Moments, common: Moments) -> tuple[float, float]:
    """Mean and deviation of a prompt's part; what all prompts have in common weighs as much as one
    episode."""
    share = own[0] / (own[0] + 1.0)
    mean = share * own[1] + (1.0 - share) * common[1]
    square = share * own[2] + (1.0 - share) * common[2]
    return mean, math.sqrt(max(square - mean**2, 0.0))


class GDPOValueEstimator:
    """Each named part of the reward less its mean for the prompt, over its deviation; added and whitened
    (GDPO).

    Means and deviations are of earlier episodes of the prompt, pulled towards those of all prompts: no part
    is in its own mean. The score, and so a shaper, is not looked at.

    Source: arXiv 2601.05242, code read in verl; without groups as derived here.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `gdpo_value`."""

        weights: dict[str, float] = field(default_factory=dict[str, float])
        """Of parts by name, for example `{correct = 1.0, format = 0.5}`; parts not named weigh 1."""
        rho: Annotated[float, Range(above=0, below=1)] = 0.9
        """Weight of what is remembered against one more episode."""
        part_floor: Positive = 0.1
        """Smallest deviation of a part divided by."""
        deviation_floor: Positive = 0.1
        """Smallest deviation of the sum over the batch divided by."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._common: dict[str, Moments] = {}
        self._own: dict[str, dict[str, Moments]] = {}

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs episodes."""
        parts, settings = reward_parts(batch.episodes), self._settings
        if unknown := set(settings.weights) - set(parts):
            raise DataError(f"estimator.weights names {sorted(unknown)}; the parts are {sorted(parts)}")
        total = np.zeros(len(batch.episodes))
        for name, values in parts.items():
            seen = [self._statistics(episode.prompt_id, name) for episode in batch.episodes]
            mean, deviation = np.array(seen).T
            normal = (values - mean) / np.maximum(deviation, settings.part_floor)
            total += settings.weights.get(name, 1.0) * normal
        return normalise(total, settings.deviation_floor)

    def _statistics(self, prompt: str, part: str) -> tuple[float, float]:
        own = self._own.get(prompt, {}).get(part, (0.0, 0.0, 0.0))
        return shrunk(own, self._common.get(part, PRIOR))

    def fold(self, episode: Episode) -> None:
        """Remember the parts of an episode."""
        own = self._own.setdefault(episode.prompt_id, {})
        for name, value in episode.reward_parts.items():
            own[name] = with_one_more(own.get(name, (0.0, 0.0, 0.0)), value, self._settings.rho)
            # Of all prompts together, so many more episodes are remembered.
            self._common[name] = with_one_more(self._common.get(name, PRIOR), value, 0.999)

    def state_dict(self) -> dict[str, Any]:
        """Moments of parts, of each prompt and of all."""
        own = {
            prompt: {name: list(one) for name, one in parts.items()} for prompt, parts in self._own.items()
        }
        return {"own": own, "common": {name: list(one) for name, one in self._common.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self._common = {name: tuple(one) for name, one in state["common"].items()}
        self._own = {
            prompt: {name: tuple(one) for name, one in parts.items()}
            for prompt, parts in state["own"].items()
        }
