"""How well baselines predicted scores: Brier score, log loss, area under the ROC curve, reliability curve.

Pure functions over pairs (baseline, score). A baseline must have been read before its score was
folded; this module cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]


def brier_score(baselines: ArrayLike, scores: ArrayLike) -> float:
    """Mean of (baseline - score)^2 over [B]; 0.25 is what 1/2 for everything gets on 0/1 scores."""
    return float(np.mean((np.asarray(baselines) - np.asarray(scores)) ** 2))


def log_loss(baselines: ArrayLike, scores: ArrayLike, *, edge: float = 1e-3) -> float:
    """Mean cross entropy over [B], in nats.

    Args:
        baselines: [B] predictions, moved into [edge, 1 - edge] so that one certain error stays finite.
        scores: [B] scores in [0, 1].
        edge: distance kept from 0 and 1.
    """
    value = np.clip(np.asarray(baselines, dtype=np.float64), edge, 1.0 - edge)
    score = np.asarray(scores, dtype=np.float64)
    return float(-np.mean(score * np.log(value) + (1.0 - score) * np.log1p(-value)))


def auc(baselines: ArrayLike, scores: ArrayLike) -> float | None:
    """Chance that an episode scored above one half had the higher baseline than one that was not; ties half.

    The area under the ROC curve over [B]: one half where baselines say nothing. None without either kind.
    """
    value, right = np.asarray(baselines, dtype=np.float64), np.asarray(scores) > 0.5
    wins, losses = int(right.sum()), int((~right).sum())
    if not wins or not losses:
        return None
    _, place, counts = np.unique(value, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return float((ranks[right].sum() - wins * (wins + 1) / 2.0) / (wins * losses))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Quality of predictions, and a reliability curve over K bins of equal width."""

    brier: float
    log_loss: float
    predicted: FloatArray
    """[K] mean baseline of each bin; nan where empty."""
    observed: FloatArray
    """[K] mean score of each bin; nan where empty."""
    counts: NDArray[np.int64]
    """[K] episodes of each bin."""


def calibration(baselines: ArrayLike, scores: ArrayLike, bins: int = 10) -> Calibration:
    """Compare predictions [B] with scores [B].

    Args:
        baselines: [B] predictions in [0, 1].
        scores: [B] scores in [0, 1].
        bins: K.
    """
    value = np.asarray(baselines, dtype=np.float64)
    score = np.asarray(scores, dtype=np.float64)
    index = np.minimum((value * bins).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    divisor = np.where(counts > 0, counts, 1)
    empty = counts == 0
    predicted = np.bincount(index, weights=value, minlength=bins) / divisor
    observed = np.bincount(index, weights=score, minlength=bins) / divisor
    predicted[empty], observed[empty] = np.nan, np.nan
    return Calibration(
        brier=brier_score(value, score),
        log_loss=log_loss(value, score),
        predicted=predicted,
        observed=observed,
        counts=counts.astype(np.int64),
    )
