"""Losses that pull a ratio back to where it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from agentrl.config.part import Part
from agentrl.config.ranges import Positive, Range
from agentrl.learner.losses.clipped import LossInputs, log_ratio
from agentrl.learner.losses.truncated import truncated_weight


class BPOLoss(Part["BPOLoss.Settings"]):
    """|A| times the distance of the ratio current/proximal from 1 + width sign(A) (BPO).

    Inside of the width the slope is PPO's; beyond it, where PPO's gradient is zero, the ratio is pulled back.
    With advantages of a group it is GBPO.

    Source: arXiv 2604.18578, its project page read. There the sign is that of the action's value less the
    *median* value; this loss takes the sign of the advantage, which the page does in practice.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `bpo`."""

        width: Positive = 0.2
        """How far the ratio shall move: up where the advantage is positive, down where it is negative."""
        importance_max: Annotated[float, Range(above=1, or_zero=True)] = 2.0
        """Bound of the weight proximal/behaviour of a token; 0 takes no weight."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and where the ratio is beyond its aim."""
        advantage = inputs.advantage
        ratio = log_ratio(inputs.current, inputs.proximal).exp()
        beyond = (ratio - 1.0 - self.settings.width * advantage.sign()) * advantage.sign()
        loss = advantage.abs() * beyond.abs() * truncated_weight(inputs, self.settings.importance_max)
        return loss, {"pulled_back": beyond.detach() > 0.0}
