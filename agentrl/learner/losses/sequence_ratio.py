"""Losses with one ratio for a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from agentrl.config.part import Part
from agentrl.config.ranges import Positive, Range
from agentrl.learner.losses.clipped import LossInputs, clipped_surrogate, log_ratio
from agentrl.learner.losses.truncated import truncated_weight


def sequence_ratio(inputs: LossInputs) -> Tensor:
    """[N] geometric mean of the ratios current/proximal of a token's sequence.

    Its gradient flows through the token's own log-probability alone, once for each token of the sequence.
    """
    mean = inputs.sequence_mean(log_ratio(inputs.current.detach(), inputs.proximal))
    return (mean + inputs.current - inputs.current.detach()).exp()


class GSPOLoss(Part["GSPOLoss.Settings"]):
    """PPO's surrogate whose ratio is the geometric mean of the sequence's ratios, clipped narrowly (GSPO).

    Made for `aggregator.kind = "sequences"`. All tokens of a sequence are clipped or none. The weight
    proximal/behaviour is the sequence's geometric mean, too.

    Source: arXiv 2507.18071, widths of its experiments; code read in verl (`gspo`; no dual clip there).
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `gspo`."""

        clip_low: Annotated[float, Range(above=0, below=1)] = 0.0003
        """The ratio is clipped below at 1 - clip_low."""
        clip_high: Positive = 0.0004
        """The ratio is clipped above at 1 + clip_high."""
        importance_max: Annotated[float, Range(above=1, or_zero=True)] = 2.0
        """Bound of the weight proximal/behaviour of a sequence; 0 takes no weight."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and where the ratio was clipped."""
        settings = self.settings
        surrogate = clipped_surrogate(
            sequence_ratio(inputs),
            inputs.advantage,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=0.0,
        )
        loss = surrogate.loss * truncated_weight(inputs, settings.importance_max, sequence=True)
        return loss, {"clip_low": surrogate.clipped_low, "clip_high": surrogate.clipped_high}
