"""Weights of prompts by how near their value is to where most is learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentrl.algorithms.advantage import FloatArray
from agentrl.config.part import Part
from agentrl.config.ranges import Positive, Share


class GaussianWeights(Part["GaussianWeights.Settings"]):
    """exp(-(v - centre)^2 / (2 width^2)) + floor: prompts solved about half the time come first (FG-ExPO).

    The paper smooths success rates by .9 from .5 on; here v is the tracker's. The floor is ours: without it a
    prompt that was never solved keeps weight .36 and one of another centre may be forgotten.

    Source: arXiv 2605.11403 (GCS), text read, complete.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `gaussian`."""

        centre: Share = 0.5
        """Value of the prompts that weigh most."""
        width: Positive = 0.35
        """Distance from it at which a weight has fallen to .61."""
        floor: Positive = 0.02
        """Added to every weight, so that no prompt is forgotten."""

    def __call__(self, values: FloatArray, counts: FloatArray) -> FloatArray:
        """[N] weights from values v, [N]; counts are not looked at."""
        settings = self.settings
        return np.exp(-((values - settings.centre) ** 2) / (2.0 * settings.width**2)) + settings.floor
