"""The loss of SPO, as small pure functions over N trainable tokens.

Paper equation 10 and appendix D; `docs/spo.md` writes out what three policies add. Every function takes
and gives tensors [N], one element per trainable token of a micro-batch: tokens the policy did not
sample never get here. This module knows nothing of models, episodes or optimizers.

Policies: `behaviour` sampled the token, `proximal` is the learner before the batch, `current` is the
learner now. Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Everything that is minimised, per token, and its parts."""

    loss: Tensor
    """[N]"""
    ratio: Tensor
    """[N] current / proximal, detached."""
    surrogate: Surrogate
    importance: ImportanceWeights
    kl_reference: Tensor | None
    """[N] detached."""


def token_loss(
    current: Tensor,
    proximal: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    importance: Importance,
    importance_min: float,
    importance_max: float,
    reference: Tensor | None = None,
    kl_coefficient: float = 0.0,
    entropy: Tensor | None = None,
    entropy_coefficient: float = 0.0,
) -> TokenLoss:
    """[N] importance weight times clipped surrogate, plus divergence, less entropy.

    Only `current` and `entropy` carry a gradient.

    Args:
        current: [N] log-probabilities of the learner now.
        proximal: [N] of the learner before the batch.
        behaviour: [N] at sampling.
        advantage: [N] of the token's episode.
        clip_low: see `clipped_surrogate`.
        clip_high: see `clipped_surrogate`.
        dual_clip: see `clipped_surrogate`.
        importance: see `importance_weights`.
        importance_min: see `importance_weights`.
        importance_max: see `importance_weights`.
        reference: [N] log-probabilities of a frozen policy, or None.
        kl_coefficient: weight of the divergence from the reference.
        entropy: [N] of the current policy, or None.
        entropy_coefficient: weight of the entropy.
    """
    proximal = proximal.detach()
    ratio = log_ratio(current, proximal).exp()
    surrogate = clipped_surrogate(
        ratio, advantage, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    weights = importance_weights(proximal, behaviour, importance, low=importance_min, high=importance_max)
    loss = surrogate.loss * weights.applied
    divergence = None
    if reference is not None and kl_coefficient != 0.0:
        divergence = k3(current, reference)
        loss = loss + kl_coefficient * divergence
        divergence = divergence.detach()
    if entropy is not None and entropy_coefficient != 0.0:
        loss = loss - entropy_coefficient * entropy
    return TokenLoss(loss, ratio.detach(), surrogate, weights, divergence)


def token_mean(loss: Tensor, total: int) -> Tensor:
    """This micro-batch's part of the mean over the `total` trainable tokens of its mini-batch.

    The parts of all micro-batches add up to the exact mean, however the mini-batch was cut.

    Args:
        loss: [N] of the micro-batch.
        total: trainable tokens of the mini-batch.
    """
    return loss.sum() / total
