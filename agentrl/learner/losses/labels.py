"""Losses that take a reward as the label of a class, in place of an advantage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from agentrl.config.ranges import Positive
from agentrl.errors import DataError
from agentrl.learner.losses.clipped import LossInputs, log_ratio


class REALLoss:
    """Logistic loss of the mean log-ratio current/behaviour of a sequence, its label being the reward (REAL).

    `each`: softplus(-y s / tau), y = 1 where the score is above one half, else -1. `groups`: of each group
    that has both classes, log(1 + sum over right ones of exp(-s / tau)) + log(1 + sum over wrong ones of
    exp(s / tau)), averaged over such groups; the gradient is the paper's at the first optimizer step of a
    batch, later the others of the group stand as before the batch. Advantages are not looked at. The weight
    of a sequence is bounded by 1 / tau, whatever its ratio. The anchor is the sampler, so that it stays right
    off the policy. Made for `aggregator.kind = "sequences"`.

    Source: arXiv 2602.05630; code read in ms-swift.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `real`."""

        temperature: Positive = 0.5
        """tau: what the mean log-ratio is divided by."""
        compare: Literal["each", "groups"] = "each"
        """Each sequence by itself (the paper's BCE form), or those of a group with each other."""

    def __init__(self, settings: Settings) -> None:
        self._tau = settings.temperature
        if settings.compare == "groups":
            self.statistics = self._group_sums

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] the loss of each token's sequence, and its mean log-ratio."""
        label = _labels(inputs)
        ratio = inputs.sequence_mean(log_ratio(inputs.current, inputs.behaviour))
        margin = -label * ratio / self._tau
        if not inputs.statistics:
            return softplus(margin), {"log_ratio": ratio.detach()}
        sums = inputs.statistics["sums"][inputs.group, (label > 0).long()]
        others = (sums - self._before(inputs, label).exp()).clamp(min=0.0)
        scale = inputs.statistics["scale"][inputs.group].to(margin.dtype)
        # log(1 + others + e^margin), without forming a large exponential.
        loss = torch.logaddexp(torch.log1p(others).to(margin.dtype), margin)
        return scale * loss, {"log_ratio": ratio.detach(), "compared": scale > 0.0}

    def _before(self, inputs: LossInputs, label: Tensor) -> Tensor:
        """[N] -y s / tau before the batch; in double, for sums of exponentials are subtracted."""
        log_ratios = log_ratio(inputs.proximal, inputs.behaviour).double()
        return -label * inputs.sequence_mean(log_ratios) / self._tau

    def _group_sums(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Sums of exp(-y s / tau) over wrong and right sequences of each group, [G, 2]; its weight, [G]."""
        label, group = _labels(inputs), inputs.group
        assert group is not None
        margin = self._before(inputs, label)
        # A token of a sequence counts 1 / its length, so that the sequence counts once.
        once = torch.bincount(inputs.sequence).to(margin.dtype).reciprocal()[inputs.sequence]
        size = int(group.max()) + 1
        place = group * 2 + (label > 0).long()
        sums = margin.new_zeros(2 * size).index_add(0, place, margin.exp() * once).view(size, 2)
        counts = margin.new_zeros(2 * size).index_add(0, place, once).view(size, 2)
        mixed = (counts > 0.5).all(dim=1)
        sequences = int(inputs.sequence[-1]) + 1
        scale = mixed.to(margin.dtype) * sequences / mixed.sum().clamp(min=1)
        return {"sums": sums, "scale": scale}


def _labels(inputs: LossInputs) -> Tensor:
    if inputs.score is None:
        raise DataError("the loss 'real' needs the score of every token's episode")
    return (inputs.score > 0.5).to(inputs.current.dtype) * 2.0 - 1.0
