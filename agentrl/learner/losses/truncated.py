"""PPO's surrogate times the truncated weight proximal/behaviour, which several losses share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from agentrl.config.ranges import Positive, Range
from agentrl.learner.losses.clipped import (
    LossInputs,
    Surrogate,
    clipped_surrogate,
    importance_weights,
    log_ratio,
)


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """Settings of `truncated_surrogate`."""

    clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
    """The ratio current/proximal is clipped below at 1 - clip_low."""
    clip_high: Positive = 0.28
    """The ratio current/proximal is clipped above at 1 + clip_high."""
    importance_max: Annotated[float, Range(above=1, or_zero=True)] = 2.0
    """Bound of the weight proximal/behaviour of a token; 0 takes no weight."""


def truncated_surrogate(
    inputs: LossInputs, advantage: Tensor, settings: ClipSettings
) -> tuple[Tensor, Surrogate]:
    """[N] the surrogate of the advantages [N] times each token's weight, and the surrogate itself."""
    surrogate = clipped_surrogate(
        log_ratio(inputs.current, inputs.proximal).exp(),
        advantage,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=0.0,
    )
    return surrogate.loss * truncated_weight(inputs, settings.importance_max), surrogate


def truncated_weight(inputs: LossInputs, bound: float, *, sequence: bool = False) -> Tensor:
    """[N] min(proximal / behaviour, bound) of a token or its sequence (geometric mean); a bound of 0 is
    none."""
    weights = importance_weights(
        inputs.log_importance("sequence" if sequence else "token"),
        "truncate" if bound else "off",
        low=0.0,
        high=bound,
    )
    return weights.applied
