r"""avg@k, pass@k and the calibration of a policy's own confidence, from counts of right answers per problem.

Definitions stand in `docs/evaluation.md`. Everything here is a pure function of arrays; it knows nothing of
policies, environments or files. maj@k is in `voting`, intervals are in `intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def avg_at_k(right: IntArray, drawn: IntArray) -> FloatArray:
    """Share of right answers per problem.

    Args:
        right: [N] right answers.
        drawn: [N] answers, at least 1.
    """
    _check_counts(right, drawn, 1)
    return right / drawn


def pass_at_k(right: IntArray, drawn: IntArray, k: int) -> FloatArray:
    r"""[N] chance that at least one of k answers is right: 1 - C(n - c, k) / C(n, k) per problem.

    Unbiased for 1 - (1 - p)^k (Chen et al. 2021, equation 1); for k = 1 it is avg@k.

    Args:
        right: [N] right answers c.
        drawn: [N] answers n, at least k.
        k: answers looked at.
    """
    _check_counts(right, drawn, k)
    wrong = drawn - right
    # C(n - c, k) / C(n, k) as the product over j < k of (n - c - j) / (n - j), each factor 0 at least.
    steps = np.arange(k)
    factors = np.clip(wrong[:, None] - steps, 0, None) / (drawn[:, None] - steps)
    return 1.0 - factors.prod(axis=1)


def pass_at_k_table(drawn: int, k: int) -> FloatArray:
    """[n + 1] pass@k for every count 0..n of right answers among n."""
    counts = np.arange(drawn + 1)
    return pass_at_k(counts, np.full(drawn + 1, drawn), k)


def best_at_k_bootstrap(
    right: IntArray, drawn: IntArray, k: int, *, resamples: int = 1000, seed: int = 42
) -> FloatArray:
    """[N] verl's `best@k/mean`: k of n answers drawn with replacement, 1000 times; biased low.

    Its expectation is 1 - (1 - c / n)^k. Kept for comparison with papers whose numbers come from it.
    """
    _check_counts(right, drawn, 1)
    values = np.empty(len(right))
    for row, (c, n) in enumerate(zip(right, drawn, strict=True)):
        picks = np.random.default_rng(seed).integers(0, n, size=(resamples, k))
        values[row] = (picks < c).any(axis=1).mean()
    return values


def _check_counts(right: IntArray, drawn: IntArray, k: int) -> None:
    if right.shape != drawn.shape or right.ndim != 1:
        raise ValueError(f"want two arrays of one length, got shapes {right.shape} and {drawn.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(drawn) and drawn.min() < k:
        raise ValueError(f"k = {k} needs at least {k} answers per problem; one has {drawn.min()}")
    if len(right) and ((right < 0).any() or (right > drawn).any()):
        raise ValueError("counts of right answers must lie between 0 and the answers drawn")


def ks_up_to(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself: the k a table shows."""
    if limit < 1:
        return []
    powers = [2**power for power in range(int(math.log2(limit)) + 1)]
    return sorted({*powers, limit})


def area_under_curve(confidence: Sequence[float], right: Sequence[bool]) -> float | None:
    """Chance that a right answer has more confidence than a wrong one; a tie counts one half.

    None when all answers are right, or all wrong.
    """
    scores, labels = np.asarray(confidence, float), np.asarray(right, bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return None
    wins = _rank_sum(scores, labels) - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def _rank_sum(scores: FloatArray, labels: NDArray[np.bool_]) -> float:
    """Sum of the ranks (from 1, ties shared) of the labelled scores."""
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ends - (counts - 1) / 2.0
    return float(ranks[where][labels].sum())


def within_problem_area(
    problems: Sequence[str], confidence: Sequence[float], right: Sequence[bool]
) -> float | None:
    """`area_under_curve` over pairs of answers to the same problem, every pair counted once.

    Free of how hard the problems are: a policy that is only surer on easy problems gets one half.
    None when no problem has both right and wrong answers.
    """
    rows: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        rows.setdefault(problem, []).append(index)
    wins = pairs = 0.0
    for indices in rows.values():
        labels = [right[i] for i in indices]
        area = area_under_curve([confidence[i] for i in indices], labels)
        if area is not None:
            count = sum(labels) * (len(labels) - sum(labels))
            wins, pairs = wins + area * count, pairs + count
    return wins / pairs if pairs else None
