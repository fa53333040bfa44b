"""Losses that look at how sure the policy was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from agentrl.config.ranges import Amount, Positive, Range
from agentrl.learner.losses.clipped import LossInputs, clipped_surrogate, log_ratio
from agentrl.learner.losses.sequence_ratio import truncated_weight


class GTPOLoss:
    """PPO's surrogate without sequences of high mean entropy, others pay for theirs (GTPO).

    A' = A - penalty H where the mean entropy H of the sequence is at most `limit` (about ln 2), else 0. The
    paper filters only where the *initial* policy's mean entropy is below ln 2: for a model above that, raise
    `limit`. Its other part, tokens shared by right and wrong answers, compares answers of one prompt side by
    side and is not here. Made for advantages that are centred and not divided, and no KL.

    Source: arXiv 2508.03772, code read.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `gtpo`."""

        penalty: Amount = 0.1
        """What a nat of mean entropy costs, in advantages."""
        limit: Positive = 0.7
        """Sequences of more nats a token are not learned from."""
        clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
        """The ratio current/proximal is clipped below at 1 - clip_low."""
        clip_high: Positive = 0.2
        """The ratio current/proximal is clipped above at 1 + clip_high."""
        importance_max: Annotated[float, Range(above=1, or_zero=True)] = 2.0
        """Bound of the weight proximal/behaviour of a token; 0 takes no weight."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and which tokens belong to dropped sequences."""
        settings = self._settings
        entropy = inputs.sequence_mean(inputs.entropy.detach())
        dropped = entropy > settings.limit
        advantage = torch.where(dropped, 0.0, inputs.advantage - settings.penalty * entropy)
        surrogate = clipped_surrogate(
            log_ratio(inputs.current, inputs.proximal).exp(),
            advantage,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=0.0,
        )
        loss = surrogate.loss * truncated_weight(inputs, settings.importance_max)
        return loss, {"entropy_dropped": dropped, "clip_high": surrogate.clipped_high}
