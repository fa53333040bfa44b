"""Score centering: takes the drift out of a policy gradient whose tokens another policy sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from agentrl.config.ranges import Count, Positive, Range
from agentrl.errors import DataError
from agentrl.learner.losses.clipped import ClippedLoss, Importance, LossInputs, importance_weights

SMALLEST_TAIL = 1e-6
"""The learner's mass outside of the likeliest tokens is taken to be at least this."""


def centering(current: Tensor, behaviour: Tensor, mode: Importance, *, low: float, high: float) -> Tensor:
    """[N] sum over H of c log p, whose gradient is the score that the sampler expects, weighted.

    H are the sampler's k likeliest tokens, p the learner, q the sampler. Outside of H q is taken to be rho p,
    with rho = (1 - sum_H q) / (1 - sum_H p). With the importance weight w that the loss applies, a token of
    H has the mass m = q w(p / q) and the others alpha p, alpha = rho w(1 / rho); no weight is alpha = rho.
    Since sum p grad log p is 0 over the whole vocabulary, c = m - alpha p on H is all of it.

    Args:
        current: [N, k] log p at the tokens of H, over the whole vocabulary; carries the gradient.
        behaviour: [N, k] log q.
        mode: of `importance_weights`.
        low: of `importance_weights`.
        high: of `importance_weights`.
    """
    with torch.no_grad():
        p, q = current.exp(), behaviour.exp()
        tail = (1.0 - q.sum(-1, keepdim=True)).clamp(min=0.0)
        rho = tail / (1.0 - p.sum(-1, keepdim=True)).clamp(min=SMALLEST_TAIL)
        mass = q * importance_weights(current - behaviour, mode, low=low, high=high).applied
        alpha = rho * importance_weights(-rho.log(), mode, low=low, high=high).applied
        coefficients = mass - alpha * p
    return (coefficients * current).sum(-1)


class CenteredLoss:
    """The loss `clipped` plus the advantage times the score that the sampler expects (score centering).

    Where the sampler q is not the learner p, E_q[grad log p] is not zero: a constant advantage alone moves
    the policy, step after step in the same direction. The term takes that part out, from the k likeliest
    tokens of the sampler at each place; the sampled token counts among them only where it is one of them. A
    weight p / q that nothing bounds leaves nothing to take out. The term follows the first optimizer step of
    a batch exactly; later ones, whose clip it does not know, nearly.

    Source: arXiv 2609.20807, equation 14 as NeMo-RL documents it (documentation read, not the paper); SkyRL
    has it by default.
    """

    requires = ("behaviour_top",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `score_centering`."""

        behaviour_top_k: Count = 20
        """Likeliest tokens of the sampler that the engine reports and the episodes keep: 8 bytes each, for
        every sampled token."""
        clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
        """The ratio current/proximal is clipped below at 1 - clip_low."""
        clip_high: Positive = 0.28
        """The ratio current/proximal is clipped above at 1 + clip_high."""
        dual_clip: Annotated[float, Range(above=1, or_zero=True)] = 10.0
        """Bound of the loss of a token with a negative advantage, in advantages; 0 switches it off."""
        importance: Literal["truncate", "bound", "mask", "both", "off"] = "truncate"
        """What is done with the weight proximal/behaviour of a token, as in `clipped`."""
        importance_max: Annotated[float, Range(above=1)] = 2.0
        """Bound of the importance weight, and upper edge of the mask."""
        importance_min: Annotated[float, Range(least=0, below=1)] = 0.5
        """Lower edge of the mask, and lower bound of `bound`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clipped = ClippedLoss(
            ClippedLoss.Settings(
                clip_low=settings.clip_low,
                clip_high=settings.clip_high,
                dual_clip=settings.dual_clip,
                importance=settings.importance,
                importance_max=settings.importance_max,
                importance_min=settings.importance_min,
            )
        )

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, what `clipped` reports, and the sampler's mass on the tokens that are looked at."""
        settings = self._settings
        if inputs.behaviour_top is None or inputs.current_at_top is None:
            raise DataError("the loss 'score_centering' needs the likeliest tokens of the sampler")
        loss, metrics = self._clipped(inputs)
        centre = centering(
            inputs.current_at_top,
            inputs.behaviour_top,
            settings.importance,
            low=settings.importance_min,
            high=settings.importance_max,
        )
        mass = inputs.behaviour_top.exp().sum(-1)
        return loss + inputs.advantage * centre, {**metrics, "centre": centre, "top_mass": mass}
