"""Losses that learn from a teacher on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from agentrl.config.ranges import Amount, Positive, Range
from agentrl.errors import DataError
from agentrl.learner.losses.clipped import LossInputs, clipped_surrogate, log_ratio
from agentrl.learner.losses.sequence_ratio import truncated_weight


class DistillationLoss:
    """PPO's surrogate of the advantage log(teacher / proximal) of each token: on-policy distillation.

    On the policy its gradient is that of KL(current || teacher) at each place. `reward` adds the
    environment's advantages, so that the teacher is a guide and not the aim.

    Source: the policy gradient of the reverse divergence of GKD (arXiv 2306.13649), one token ahead.
    """

    requires = ("teacher",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `distillation`."""

        reward: Amount = 0.0
        """Weight of the environment's advantages; 0 learns from the teacher alone."""
        bound: Positive = 5.0
        """The teacher's advantage of a token is clipped at +-bound, nats."""
        clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
        """The ratio current/proximal is clipped below at 1 - clip_low."""
        clip_high: Positive = 0.28
        """The ratio current/proximal is clipped above at 1 + clip_high."""
        importance_max: Annotated[float, Range(above=1, or_zero=True)] = 2.0
        """Bound of the weight proximal/behaviour of a token; 0 takes no weight."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and log(proximal / teacher), whose mean is the divergence."""
        settings = self._settings
        if inputs.teacher is None:
            raise DataError("the loss 'distillation' needs the log-probabilities of a teacher")
        behind = log_ratio(inputs.proximal, inputs.teacher)
        surrogate = clipped_surrogate(
            log_ratio(inputs.current, inputs.proximal).exp(),
            settings.reward * inputs.advantage - behind.clamp(-settings.bound, settings.bound),
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=0.0,
        )
        loss = surrogate.loss * truncated_weight(inputs, settings.importance_max)
        return loss, {"teacher_divergence": behind}
