"""Losses that learn from a teacher on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from agentrl.config.part import Part
from agentrl.config.ranges import Amount, Positive
from agentrl.errors import DataError
from agentrl.learner.losses.clipped import LossInputs, log_ratio
from agentrl.learner.losses.truncated import ClipSettings, truncated_surrogate


class DistillationLoss(Part["DistillationLoss.Settings"]):
    """PPO's surrogate of the advantage log(teacher / proximal) of each token: on-policy distillation.

    On the policy its gradient is that of KL(current || teacher) at each place. `reward` adds the
    environment's advantages, so that the teacher is a guide and not the aim.

    Source: the policy gradient of the reverse divergence of GKD (arXiv 2306.13649), one token ahead.
    """

    requires = ("teacher",)

    @dataclass(frozen=True, slots=True)
    class Settings(ClipSettings):
        """Settings of `distillation`."""

        reward: Amount = 0.0
        """Weight of the environment's advantages; 0 learns from the teacher alone."""
        bound: Positive = 5.0
        """The teacher's advantage of a token is clipped at +-bound, nats."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and log(proximal / teacher), whose mean is the divergence."""
        settings = self.settings
        if inputs.teacher is None:
            raise DataError("the loss 'distillation' needs the log-probabilities of a teacher")
        behind = log_ratio(inputs.proximal, inputs.teacher)
        advantage = settings.reward * inputs.advantage - behind.clamp(-settings.bound, settings.bound)
        loss, _ = truncated_surrogate(inputs, advantage, settings)
        return loss, {"teacher_divergence": behind}
