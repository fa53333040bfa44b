"""The loss of SPO, as small pure functions over N trainable tokens.

Paper equation 10 and appendix D; `docs/spo.md` writes out what three policies add. Every function takes
and gives tensors [N], one element per trainable token of a micro-batch: tokens the policy did not
sample never get here. This module knows nothing of models, episodes or optimizers.

Policies: `behaviour` sampled the token, `proximal` is the learner before the batch, `current` is the
learner now. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from agentrl.config.ranges import Positive, Range

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to +-20, so that exp never overflows (released SPO code)."""

Importance = Literal["truncate", "mask", "both", "metrics", "off"]


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """[N] log(numerator / denominator) from log-probabilities [N], clamped to +-20."""
    return (numerator - denominator).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The clipped surrogate of N tokens, and where which bound held."""

    loss: Tensor
    """[N]"""
    clipped_low: Tensor
    """[N] bool: negative advantage, ratio below 1 - clip_low."""
    clipped_high: Tensor
    """[N] bool: positive advantage, ratio above 1 + clip_high."""
    clipped_dual: Tensor
    """[N] bool: negative advantage, loss bounded by dual_clip."""


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float, dual_clip: float
) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), at most dual_clip |A| where A < 0.

    Paper equation 10 (clip-higher); the dual clip is in the released code only (arXiv 1912.09729).

    Args:
        ratio: [N] current / proximal.
        advantage: [N] of the token's episode.
        clip_low: lower width of the clip.
        clip_high: upper width of the clip.
        dual_clip: bound in advantages, above 1; 0 switches it off.
    """
    plain = -ratio * advantage
    clipped = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage
    loss = torch.maximum(plain, clipped)
    negative = advantage < 0
    dual = torch.zeros_like(negative)
    if dual_clip > 0.0:
        bound = -dual_clip * advantage
        dual = negative & (loss > bound)
        loss = torch.where(dual, bound, loss)
    return Surrogate(
        loss=loss,
        clipped_low=negative & (ratio < 1.0 - clip_low),
        clipped_high=(advantage > 0) & (ratio > 1.0 + clip_high),
        clipped_dual=dual,
    )


@dataclass(frozen=True, slots=True)
class ImportanceWeights:
    """Weights proximal / behaviour of N tokens."""

    raw: Tensor
    """[N] before anything is done to them."""
    applied: Tensor
    """[N] what the token's loss is multiplied by."""
    outside: Tensor
    """[N] bool: bounded or zeroed, or would have been in `metrics` mode."""


def importance_weights(
    proximal: Tensor, behaviour: Tensor, mode: Importance, *, low: float, high: float
) -> ImportanceWeights:
    """What corrects a token for having been sampled by another policy than the proximal one.

    Two independent switches: `truncate` multiplies by min(w, high); `mask` drops tokens whose w lies
    outside [low, high] and leaves the others as they are; `both` drops and multiplies. `metrics`
    computes w and applies nothing; `off` does not look at the behaviour policy at all.

    Args:
        proximal: [N] log-probabilities of the learner before the batch.
        behaviour: [N] log-probabilities at sampling.
        mode: see above.
        low: lower edge of the mask.
        high: bound of the weight, and upper edge of the mask.
    """
    if mode == "off":
        ones = torch.ones_like(proximal)
        return ImportanceWeights(ones, ones, torch.zeros_like(ones, dtype=torch.bool))
    raw = log_ratio(proximal, behaviour).exp()
    above, beyond = raw > high, (raw > high) | (raw < low)
    if mode == "truncate":
        return ImportanceWeights(raw, raw.clamp(max=high), above)
    if mode == "mask":
        return ImportanceWeights(raw, (~beyond).to(raw.dtype), beyond)
    if mode == "both":
        return ImportanceWeights(raw, torch.where(beyond, 0.0, raw), beyond)
    return ImportanceWeights(raw, torch.ones_like(raw), beyond)


def effective_share(weight_sum: float, square_sum: float, count: int) -> float:
    """Effective sample size (sum w)^2 / sum w^2, divided by the number of tokens (Kish).

    Args:
        weight_sum: sum of the weights.
        square_sum: sum of their squares.
        count: number of tokens.
    """
    return weight_sum**2 / (square_sum * count) if square_sum > 0.0 and count else 0.0


def k3(current: Tensor, other: Tensor) -> Tensor:
    """[N] exp(x) - x - 1 with x = log(other / current): unbiased for KL(current || other), never negative.

    Unbiased for tokens sampled from `current` (joschu.net/blog/kl-approx.html).
    """
    x = log_ratio(other, current)
    return x.exp() - x - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What a loss sees of the N trainable tokens of a micro-batch; whole sequences, one after the other.

    Only `current` and `entropy` carry a gradient.
    """

    current: Tensor
    """[N] log-probabilities of the learner now."""
    proximal: Tensor
    """[N] of the learner before the batch."""
    behaviour: Tensor
    """[N] at sampling."""
    advantage: Tensor
    """[N]"""
    entropy: Tensor
    """[N] of the current policy, nats."""
    reference: Tensor | None = None
    """[N] log-probabilities of the reference, where the loss requires one or `kl_coefficient` is not 0."""
    sequence: Tensor
    """[N] which sequence of the micro-batch a token belongs to: 0, 0, ..., 1, 1, ..."""
    position: Tensor
    """[N] place of the token in its segment, prompt and tool output counted."""
    turn: Tensor
    """[N] which of the segment's sampled messages, from 0, among those learned from."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """What the loss's own `statistics` gave for the whole batch."""

    def sequence_mean(self, values: Tensor) -> Tensor:
        """[N] the mean of `values` over the sequence of each token."""
        size = int(self.sequence[-1]) + 1
        sums = values.new_zeros(size).index_add(0, self.sequence, values)
        return (sums / torch.bincount(self.sequence, minlength=size))[self.sequence]


class Loss(Protocol):
    """What is minimised at each token.

    It may have a method `statistics(inputs)`, which is given the whole batch before it is cut (with
    `current` = `proximal`) and returns what `LossInputs.statistics` holds; it then requires `proximal`.
    """

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and what is logged of it: names to [N], of which the mean over tokens is reported."""
        ...


class ClippedLoss:
    """Importance weight times clipped surrogate (paper equation 10 and appendix D)."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `clipped`."""

        clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
        """The ratio current/proximal is clipped below at 1 - clip_low."""
        clip_high: Positive = 0.28
        """The ratio current/proximal is clipped above at 1 + clip_high."""
        dual_clip: Annotated[float, Range(above=1, or_zero=True)] = 10.0
        """Bound of the loss of a token with a negative advantage, in advantages; 0 switches it off."""
        importance: Literal["truncate", "mask", "both", "metrics", "off"] = "truncate"
        """What is done with the weight proximal/behaviour of a token: bounded, tokens outside zeroed, both,
        only counted, or nothing at all."""
        importance_max: Annotated[float, Range(above=1)] = 2.0
        """Bound of the importance weight, and upper edge of the mask."""
        importance_min: Annotated[float, Range(least=0, below=1)] = 0.5
        """Lower edge of the mask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and the shares of tokens at which a bound held."""
        settings = self._settings
        surrogate = clipped_surrogate(
            log_ratio(inputs.current, inputs.proximal).exp(),
            inputs.advantage,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
        )
        weights = importance_weights(
            inputs.proximal,
            inputs.behaviour,
            settings.importance,
            low=settings.importance_min,
            high=settings.importance_max,
        )
        return surrogate.loss * weights.applied, {
            "clip_low": surrogate.clipped_low,
            "clip_high": surrogate.clipped_high,
            "clip_dual": surrogate.clipped_dual,
            "importance_outside": weights.outside,
        }


def with_regularisers(
    loss: Tensor, inputs: LossInputs, *, kl_coefficient: float, entropy_coefficient: float
) -> Tensor:
    """[N] loss + kl_coefficient k3(current, reference) - entropy_coefficient entropy; what is 0 is left out.

    Args:
        loss: [N]
        inputs: of the loss.
        kl_coefficient: weight of the divergence from the reference.
        entropy_coefficient: weight of the entropy.
    """
    if inputs.reference is not None and kl_coefficient != 0.0:
        loss = loss + kl_coefficient * k3(inputs.current, inputs.reference)
    if entropy_coefficient != 0.0:
        loss = loss - entropy_coefficient * inputs.entropy
    return loss
