"""Losses that look at how sure the policy was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from agentrl.config.part import Part
from agentrl.config.ranges import Amount, Positive, Range
from agentrl.learner.losses.clipped import LossInputs, clipped_surrogate, log_ratio
from agentrl.learner.losses.truncated import ClipSettings, truncated_surrogate, truncated_weight


class GTPOLoss(Part["GTPOLoss.Settings"]):
    """PPO's surrogate without sequences of high mean entropy, others pay for theirs (GTPO).

    A' = A - penalty H where the mean entropy H of the sequence is at most `limit` (about ln 2), else 0. The
    paper filters only where the *initial* policy's mean entropy is below ln 2: for a model above that, raise
    `limit`. Its other part, tokens shared by right and wrong answers, compares answers of one prompt side by
    side and is not here. Made for advantages that are centred and not divided, and no KL.

    Source: arXiv 2508.03772, code read.
    """

    @dataclass(frozen=True, slots=True)
    class Settings(ClipSettings):
        """Settings of `gtpo`."""

        penalty: Amount = 0.1
        """What a nat of mean entropy costs, in advantages."""
        limit: Positive = 0.7
        """Sequences of more nats a token are not learned from."""
        clip_high: Positive = 0.2
        """The ratio current/proximal is clipped above at 1 + clip_high."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and which tokens belong to dropped sequences."""
        settings = self.settings
        entropy = inputs.sequence_mean(inputs.entropy.detach())
        dropped = entropy > settings.limit
        advantage = torch.where(dropped, 0.0, inputs.advantage - settings.penalty * entropy)
        loss, surrogate = truncated_surrogate(inputs, advantage, settings)
        return loss, {"entropy_dropped": dropped, "clip_high": surrogate.clipped_high}


LEAST_ENTROPY = 1e-4
"""Entropies below this, in nats, count as this: a token that was certain would stretch the scale of all
others."""


class HAPOLoss(Part["HAPOLoss.Settings"]):
    """PPO's surrogate, wider downwards where entropy is low and upwards where it is high (HAPO's clip).

    h is the distance of log entropy from its `pivot` quantile over the batch, scaled to [-1, 1] on each side:
    the lower width is clip (1 - strength h) where h <= 0, the upper clip (1 + strength h) where h > 0. One of
    the paper's four parts; its dual clip of 10 is here, too. The released code divides by a negative number,
    which maps low entropies to +[0, 1] and widens upwards for both extremes; this follows the text.

    Source: arXiv 2509.16591, text and code read.
    """

    requires = ("proximal",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `hapo`."""

        clip: Annotated[float, Range(above=0, below=0.5)] = 0.2
        """Width of the clip of the ratio current/proximal at the pivot."""
        strength: Annotated[float, Range(least=0, most=1)] = 1.0
        """alpha: how much wider the clip of the extremes is, as a share of `clip`."""
        pivot: Annotated[float, Range(above=0, below=1)] = 0.8
        """Quantile of the log entropies that parts low from high."""
        dual_clip: Annotated[float, Range(above=1, or_zero=True)] = 10.0
        """Bound of the loss of a token with a negative advantage, in advantages; 0 switches it off."""
        importance_max: Annotated[float, Range(above=1, or_zero=True)] = 2.0
        """Bound of the weight proximal/behaviour of a token; 0 takes no weight."""

    def statistics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Pivot of the log entropies of the batch, and how far they reach to either side."""
        logs = _log(inputs.entropy)
        pivot = torch.quantile(logs, self.settings.pivot)
        return {"pivot": pivot, "above": logs.max() - pivot, "below": pivot - logs.min()}

    def heights(self, inputs: LossInputs) -> Tensor:
        """[N] h in [-1, 1]."""
        seen = inputs.statistics
        away = _log(inputs.entropy.detach()) - seen["pivot"]
        reach = torch.where(away > 0.0, seen["above"], seen["below"])
        return (away / reach.clamp(min=1e-9)).clamp(-1.0, 1.0)

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and where which clip held."""
        settings, height = self.settings, self.heights(inputs)
        low = settings.clip * (1.0 + settings.strength * (-height).clamp(min=0.0))
        high = settings.clip * (1.0 + settings.strength * height.clamp(min=0.0))
        ratio = log_ratio(inputs.current, inputs.proximal).exp()
        surrogate = clipped_surrogate(
            ratio, inputs.advantage, clip_low=low, clip_high=high, dual_clip=settings.dual_clip
        )
        loss = surrogate.loss * truncated_weight(inputs, settings.importance_max)
        return loss, {"clip_low": surrogate.clipped_low, "clip_high": surrogate.clipped_high}


class D3STokensLoss(Part["D3STokensLoss.Settings"]):
    """PPO's surrogate of the tokens with the largest |advantage| times entropy, the others left out (D3S).

    `share` of the tokens of the batch are learned from; their losses are divided by it, so that the step
    keeps its size. The paper anneals the share to 1, from a start that was not found.

    Source: arXiv 2509.22115, reading notes with equations.
    """

    requires = ("proximal",)

    @dataclass(frozen=True, slots=True)
    class Settings(ClipSettings):
        """Settings of `d3s_tokens`."""

        share: Annotated[float, Range(above=0, most=1)] = 0.5
        """Of the tokens of a batch that are learned from."""

    def statistics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """The least |advantage| times entropy that is learned from."""
        worth = inputs.advantage.abs() * inputs.entropy
        kept = max(round(self.settings.share * len(worth)), 1)
        return {"least": worth.topk(kept).values[-1]}

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and which tokens were learned from."""
        settings = self.settings
        kept = inputs.advantage.abs() * inputs.entropy.detach() >= inputs.statistics["least"]
        loss, _ = truncated_surrogate(inputs, inputs.advantage, settings)
        return torch.where(kept, loss / settings.share, 0.0), {"tokens_kept": kept}


def _log(entropy: Tensor) -> Tensor:
    return entropy.clamp(min=LEAST_ENTROPY).log()
