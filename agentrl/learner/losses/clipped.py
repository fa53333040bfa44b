"""The loss of SPO, as small pure functions over N trainable tokens.

Paper equation 10 and appendix D; `docs/spo.md` writes out what three policies add. Every function takes
and gives tensors [N], one element per trainable token of a micro-batch: tokens the policy did not
sample never get here. This module knows nothing of models, episodes or optimizers.

Policies: `behaviour` sampled the token, `proximal` is the learner before the batch, `current` is the
learner now. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Protocol, cast

import torch
from torch import Tensor

from agentrl.config.part import Part
from agentrl.config.ranges import Positive, Range
from agentrl.learner.losses.rows import sum_from

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to +-20, so that exp never overflows (released SPO code)."""

Importance = Literal["truncate", "bound", "mask", "both", "metrics", "off"]
Level = Literal["token", "sequence", "product"]


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
    ratio: Tensor, advantage: Tensor, *, clip_low: float | Tensor, clip_high: float | Tensor, dual_clip: float
) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), at most dual_clip |A| where A < 0.

    Paper equation 10 (clip-higher); the dual clip is in the released code only (arXiv 1912.09729).

    Args:
        ratio: [N] current / proximal.
        advantage: [N] of the token's episode.
        clip_low: lower width of the clip, or [N] of each token.
        clip_high: upper width of the clip, or [N].
        dual_clip: bound in advantages, above 1; 0 switches it off.
    """
    plain = -ratio * advantage
    edges = cast("tuple[float, float]", (1.0 - clip_low, 1.0 + clip_high))  # clamp takes tensors, too
    clipped = -ratio.clamp(*edges) * advantage
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


def importance_weights(log_weight: Tensor, mode: Importance, *, low: float, high: float) -> ImportanceWeights:
    """What corrects a token for having been sampled by another policy than the proximal one.

    Two independent switches: `truncate` multiplies by min(w, high); `mask` drops tokens whose w lies
    outside [low, high] and leaves the others as they are; `both` drops and multiplies. `bound` multiplies by
    w truncated at both ends. `metrics` computes w and applies nothing; `off` does not look at w at all.

    Args:
        log_weight: [N] log(proximal / behaviour), of tokens or of whole sequences.
        mode: see above.
        low: lower edge of the mask, and lower bound of the weight.
        high: upper bound of the weight, and upper edge of the mask.
    """
    if mode == "off":
        ones = torch.ones_like(log_weight)
        return ImportanceWeights(ones, ones, torch.zeros_like(ones, dtype=torch.bool))
    raw = log_weight.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    above, beyond = raw > high, (raw > high) | (raw < low)
    if mode == "truncate":
        return ImportanceWeights(raw, raw.clamp(max=high), above)
    if mode == "bound":
        return ImportanceWeights(raw, raw.clamp(low, high), beyond)
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


def k2(current: Tensor, other: Tensor) -> Tensor:
    """[N] x^2 / 2 with x = log(current / other); its gradient is that of KL(current || other) at each place.

    On average over tokens sampled from `current`: x times the gradient of log current.
    """
    return log_ratio(current, other).square() / 2.0


def k3(current: Tensor, other: Tensor) -> Tensor:
    """[N] exp(x) - x - 1 with x = log(other / current): unbiased for KL(current || other), never negative.

    Unbiased for tokens sampled from `current` (joschu.net/blog/kl-approx.html). Its gradient, though, is on
    average that of KL(other || current): (1 - other / current) times the gradient of log current.
    """
    x = log_ratio(other, current)
    return x.exp() - x - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What a loss sees of the N trainable tokens of a micro-batch; whole sequences, one after the other.

    `current`, `entropy`, `logsumexp`, `logit`, `top_logprobs` and `current_at_top` carry a gradient; logits
    are divided by the temperature of the episode.
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
    logsumexp: Tensor
    """[N] of the logits of the current policy."""
    top_ids: Tensor | None = None
    """[N, k] the likeliest tokens of the current policy, where the loss has an attribute `top_k`."""
    top_logprobs: Tensor | None = None
    """[N, k] and their log-probabilities, the largest first."""
    behaviour_top_ids: Tensor | None = None
    """[N, k] the likeliest tokens of the sampler, where the loss requires `behaviour_top`."""
    behaviour_top: Tensor | None = None
    """[N, k] their log-probabilities at sampling, the largest first."""
    current_at_top: Tensor | None = None
    """[N, k] log-probabilities of the same tokens by the learner now, over the whole vocabulary."""
    teacher: Tensor | None = None
    """[N] log-probabilities of the weights at `loss.teacher`, where the loss requires `teacher`."""
    value: Tensor | None = None
    """[N] the tracker's value of the token's prompt before the batch, where the loss requires `baselines`."""
    reference: Tensor | None = None
    """[N] log-probabilities of the reference, where the loss requires one or `kl_coefficient` is not 0."""
    score: Tensor | None = None
    """[N] the reward of the token's episode, mapped to [0, 1], not shaped."""
    group: Tensor | None = None
    """[N] the group of the token's episode, from 0; one for each episode where there are no groups."""
    sequence: Tensor
    """[N] which sequence of the micro-batch a token belongs to: 0, 0, ..., 1, 1, ..."""
    position: Tensor
    """[N] place of the token in its segment, prompt and tool output counted."""
    segment: Tensor
    """[N] which segment of its episode a token belongs to."""
    turn: Tensor
    """[N] which of the segment's sampled messages, from 0, among those learned from."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """What the loss's own `statistics` gave for the whole batch."""

    @property
    def logit(self) -> Tensor:
        """[N] of the sampled token."""
        return self.current + self.logsumexp

    def sequence_sum(self, values: Tensor) -> Tensor:
        """[N] the sum of `values` over the sequence of each token."""
        size = int(self.sequence[-1]) + 1
        return values.new_zeros(size).index_add(0, self.sequence, values)[self.sequence]

    def sequence_mean(self, values: Tensor) -> Tensor:
        """[N] the mean of `values` over the sequence of each token."""
        return self.sequence_sum(values) / torch.bincount(self.sequence)[self.sequence]

    def log_importance(self, level: Level = "token") -> Tensor:
        """[N] log(proximal / behaviour) of a token, or the mean or the sum over its sequence.

        The mean is the log of the geometric mean of the tokens' weights, the sum that of their product.
        """
        of_token = log_ratio(self.proximal, self.behaviour)
        if level == "token":
            return of_token
        return self.sequence_mean(of_token) if level == "sequence" else self.sequence_sum(of_token)


class Loss(Protocol):
    """What is minimised at each token.

    It may have a method `statistics(inputs)`, which is given the whole batch before it is cut (with
    `current` = `proximal`) and returns what `LossInputs.statistics` holds; it then requires `proximal`. And
    an attribute `top_k`: so many of the likeliest tokens it is shown at each position.
    """

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and what is logged of it: names to [N], of which the mean over tokens is reported."""
        ...


class ClippedLoss(Part["ClippedLoss.Settings"]):
    """Importance weight proximal/behaviour times PPO's surrogate of current/proximal, clipped.

    The three policies make it the decoupled objective (arXiv 2110.00641). The weight may be a token's, or its
    sequence's: geometric mean or product of its tokens' weights.

    Source: arXiv 2509.13232, text and code read (equation 10, appendix D); clip-higher arXiv 2503.14476; dual
    clip arXiv 1912.09729, code read.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `clipped`."""

        clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
        """The ratio current/proximal is clipped below at 1 - clip_low."""
        clip_high: Positive = 0.28
        """The ratio current/proximal is clipped above at 1 + clip_high."""
        dual_clip: Annotated[float, Range(above=1, or_zero=True)] = 10.0
        """Bound of the loss of a token with a negative advantage, in advantages; 0 switches it off."""
        importance: Literal["truncate", "bound", "mask", "both", "metrics", "off"] = "truncate"
        """What is done with the weight proximal/behaviour: bounded above, bounded at both ends, tokens
        outside zeroed, zeroed and weighted, only counted, or nothing at all."""
        importance_level: Literal["token", "sequence", "product"] = "token"
        """The weight is a token's own, the geometric mean of its sequence's, or their product."""
        importance_max: Annotated[float, Range(above=1)] = 2.0
        """Bound of the importance weight, and upper edge of the mask."""
        importance_min: Annotated[float, Range(least=0, below=1)] = 0.5
        """Lower edge of the mask, and lower bound of `bound`."""

    def __call__(self, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        """[N] loss, and the shares of tokens at which a bound held."""
        settings = self.settings
        surrogate = clipped_surrogate(
            log_ratio(inputs.current, inputs.proximal).exp(),
            inputs.advantage,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
        )
        weights = importance_weights(
            inputs.log_importance(settings.importance_level),
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


KL = Literal["k1", "k2", "k3"]


def with_divergence(inputs: LossInputs, coefficient: float) -> LossInputs:
    """The inputs with advantages from which k1 was taken: coefficient times the log-ratios from a token on.

    k1 = log(proximal / reference) counts as a reward, so the gradient is that of KL(current || reference) of
    whole sequences. As a term of the loss k1 would do nothing: its gradient is zero on average.
    """
    assert inputs.reference is not None
    to_go = sum_from(log_ratio(inputs.proximal, inputs.reference), inputs.sequence)
    return replace(inputs, advantage=inputs.advantage - coefficient * to_go)


def with_regularisers(
    loss: Tensor, inputs: LossInputs, *, kl: KL = "k3", kl_coefficient: float, entropy_coefficient: float
) -> Tensor:
    """[N] loss + kl_coefficient k - entropy_coefficient entropy; what is 0 is left out.

    Args:
        loss: [N]
        inputs: of the loss.
        kl: `k2` or `k3` is added here; `k1` is in the advantages (`with_divergence`).
        kl_coefficient: weight of the divergence from the reference.
        entropy_coefficient: weight of the entropy.
    """
    if inputs.reference is not None and kl_coefficient != 0.0 and kl != "k1":
        estimate = k2 if kl == "k2" else k3
        loss = loss + kl_coefficient * estimate(inputs.current, inputs.reference)
    if entropy_coefficient != 0.0:
        loss = loss - entropy_coefficient * inputs.entropy
    return loss
