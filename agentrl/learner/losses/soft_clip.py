"""Losses whose ratio is a weight without gradient: a bound makes a token's step small, never zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from agentrl.config.part import Part
from agentrl.config.ranges import Positive, Range
from agentrl.learner.losses.clipped import LossInputs, log_ratio
from agentrl.learner.losses.rows import minimum_before


def weighted(log_weight: Tensor, inputs: LossInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-clip(w, 1 - low, 1 + high) A log current, no gradient through w; and where the clip held, [N] each."""
    weight = log_weight.exp()
    clipped = weight.clamp(1.0 - low, 1.0 + high)
    return -clipped * inputs.advantage * inputs.current, weight != clipped


class CISPOLoss(Part["CISPOLoss.Settings"]):
    """Minus clipped ratio current/behaviour, without gradient, times advantage times log-probability (CISPO).

    No token's gradient is ever switched off.

    Source: arXiv 2506.13585 (MiniMax-M1, equations 4 and 5); code read in verl and TRL. The paper has no
    lower bound and does not give the upper; TRL's documentation recommends 5."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `cispo`."""

        clip_low: Annotated[float, Range(above=0, most=1)] = 1.0
        """The weight is at least 1 - clip_low; 1 leaves it without a lower bound."""
        clip_high: Positive = 4.0
        """The weight is at most 1 + clip_high."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and where the weight was clipped."""
        log_weight = log_ratio(inputs.current.detach(), inputs.behaviour)
        loss, clipped = weighted(log_weight, inputs, self.settings.clip_low, self.settings.clip_high)
        return loss, {"weight_clipped": clipped}


class MinPROLoss(Part["MinPROLoss.Settings"]):
    """CISPO whose weight is the token's ratio times the smallest ratio before it in the sequence (MinPRO).

    The exact weight of a token is the product of all ratios up to it; the smallest ratio of the prefix stands
    in for that product. Only sampled tokens count: tool output is skipped. The first token has a prefix of 1.

    Source: arXiv 2601.22718, from reading notes that quote the objective; its clip widths were not found,
    those here are GRPO's."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `minpro`."""

        clip_low: Annotated[float, Range(above=0, most=1)] = 0.2
        """The weight is at least 1 - clip_low."""
        clip_high: Positive = 0.28
        """The weight is at most 1 + clip_high."""
        bound_prefix: bool = False
        """Take no prefix above 1 (not in the paper): the second token's prefix is one single ratio."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, where the weight was clipped, and the smallest ratio of the prefix."""
        settings = self.settings
        ratios = log_ratio(inputs.current.detach(), inputs.behaviour)
        prefix = minimum_before(ratios, inputs.sequence)
        if settings.bound_prefix:
            prefix = prefix.clamp(max=0.0)
        loss, clipped = weighted(prefix + ratios, inputs, settings.clip_low, settings.clip_high)
        return loss, {"weight_clipped": clipped, "prefix_minimum": prefix.exp()}
