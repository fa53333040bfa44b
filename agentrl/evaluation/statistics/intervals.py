r"""Intervals for a mean over problems, for two different questions.

`new_problems`: the problems are drawn from a population and the mean of the population is wanted; this is
what a claim about a benchmark's kind of problem needs, and what tables show by default.
`same_problems`: the problems are fixed and only the policy would be drawn from again; this is how far a
repetition of the same evaluation may land.

The methods were chosen by simulation (`benchmarks/intervals.py`, table in `docs/evaluation.md`). Functions
take values [..., N] and return bounds [...], so that the simulation runs the code users run. They know
nothing of episodes or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from agentrl.evaluation.statistics.quantiles import normal_quantile, student_t_quantile

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEVEL = 0.95
"""Chance that an interval covers what it is about."""
NEAR_EDGE = 3.0
"""Below this many problems' worth of right (or of wrong) answers the skew-aware method takes over."""
FEW_PROBLEMS = 5
"""Fewer problems than this and the skew-aware method takes over too."""
DIRICHLET_DRAWS = 5_000
"""Monte Carlo draws of the skew-aware method; the chance beyond a bound is then 2.5% give or take 0.2%."""
FEW_CHANGES = 10
"""A paired difference with fewer changed problems than this is measured in the manner of Agresti and Min."""


class Estimand(StrEnum):
    """What an interval is about."""

    NEW_PROBLEMS = "new_problems"
    """The mean over the population the problems come from."""
    SAME_PROBLEMS = "same_problems"
    """The mean over these very problems, with new answers."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds, and how they were made."""

    low: float
    high: float
    method: str
    level: float = LEVEL


# ---- new problems ------------------------------------------------------------------------------------------


def new_problems_interval(values: Sequence[float] | FloatArray) -> Interval:
    """Interval of the population mean from one value in [0, 1] per problem.

    Args:
        values: [N] of `avg_at_k`, `pass_at_k` or `maj_at_k`.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values):
        raise ValueError("an interval needs at least one problem")
    low, high, skew_aware = new_problems_bounds(values[None])
    return Interval(float(low[0]), float(high[0]), "gaffke" if skew_aware[0] else "wilson-effective")


def new_problems_bounds(values: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Bounds for many sets of problems at once: low [R], high [R], and where the skew-aware method was used.

    Wilson's interval with the effective number of problems m (1 - m) / variance of the mean, and Student's
    quantile with N - 1 degrees of freedom. Where fewer than `NEAR_EDGE` problems' worth of answers is right
    (or wrong), or the values do not differ at all: Gaffke's bounds, which become those of Clopper and
    Pearson when every value is 0 or 1.
    """
    count = values.shape[1]
    mean = values.mean(axis=1)
    variance = values.var(axis=1, ddof=1) / count if count > 1 else np.zeros(len(values))
    edge = np.minimum(mean, 1.0 - mean) * count < NEAR_EDGE - 1e-9  # a rounding decides no tie
    skew_aware = edge | (variance <= 1e-15) | (count < FEW_PROBLEMS)
    quantile = student_t_quantile(0.5 + LEVEL / 2.0, max(count - 1, 1))
    low, high = _wilson(mean, variance, np.full(len(mean), max(count - 1.0, 1.0)), quantile)
    for row in np.flatnonzero(skew_aware):
        low[row], high[row] = _gaffke(values[row])
    return low, high, skew_aware


def _wilson(
    mean: FloatArray, variance: FloatArray, least: FloatArray, quantile: float
) -> tuple[FloatArray, FloatArray]:
    """Wilson's score interval with an effective number of trials.

    `least`: the trials when each is all or nothing, below which the effective number cannot fall.
    """
    spread = mean * (1.0 - mean)
    trials = np.maximum(spread / np.maximum(variance, 1e-30), least)
    square = quantile * quantile
    centre = (mean + square / (2.0 * trials)) / (1.0 + square / trials)
    half = quantile / (1.0 + square / trials) * np.sqrt(spread / trials + square / (4.0 * trials * trials))
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def _gaffke(values: FloatArray) -> tuple[float, float]:
    """Gaffke's bounds (2005) for the mean of a distribution on [0, 1]: free of assumptions on its shape.

    The upper bound is a quantile of the weighted mean of the values and of one further value 1, with
    weights uniform on the simplex; the lower bound the same with a further value 0.
    """
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(0)
    # The weights of equal values add up to one Gamma variable, so thousands of problems cost little.
    weights = rng.gamma(counts, size=(DIRICHLET_DRAWS, len(counts)))
    extra = rng.standard_exponential(DIRICHLET_DRAWS)
    total = weights.sum(axis=1) + extra
    weighted = weights @ distinct
    tail = (1.0 - LEVEL) / 2.0
    low = float(np.quantile(weighted / total, tail)) if distinct[-1] > 0.0 else 0.0
    high = float(np.quantile((weighted + extra) / total, 1.0 - tail)) if distinct[0] < 1.0 else 1.0
    return low, high


# ---- same problems -----------------------------------------------------------------------------------------


def same_problems_interval(
    mean: float, variances: Sequence[float] | FloatArray, *, trials: int = 0
) -> Interval:
    """Interval of the mean over these problems from the variance of each problem's value under new answers.

    Args:
        mean: mean of the values over the N problems.
        variances: [N], of `rate_variances`, `pass_variances` or `voting.majority_variance`.
        trials: independent draws behind the mean, below which the effective number cannot fall: all answers
            for avg@k (a sum of unlike coins varies less than one of like coins; Hoeffding 1956). 0 takes N.
    """
    variances = np.asarray(variances, float)
    count = len(variances)
    bounds = same_problems_bounds(
        np.array([mean]),
        np.array([variances.sum() / count**2]),
        np.array([float(trials or count)]),
    )
    return Interval(float(bounds[0][0]), float(bounds[1][0]), "wilson-effective")


def same_problems_bounds(
    mean: FloatArray, variance: FloatArray, least: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Bounds [R] from means [R], variances of the means [R] and least effective trials [R]."""
    return _wilson(mean, variance, least, normal_quantile(0.5 + LEVEL / 2.0))


def rate_variances(right: IntArray, drawn: IntArray) -> FloatArray:
    """[..., N] expected variance of avg@n of each problem under new answers, p (1 - p) / n.

    The rates get a beta prior fitted to all problems (`rate_prior`): a problem that was right every time
    is not certain to stay so. With one answer per problem within and between cannot be told apart, and the
    prior puts all spread within, which makes the interval too wide rather than too narrow.
    """
    a, b = rate_prior(right, drawn)
    alpha, beta = a + right, b + (drawn - right)
    total = alpha + beta
    return alpha * beta / (total * (total + 1.0)) / drawn


def pass_variances(right: IntArray, drawn: IntArray, k: int) -> FloatArray:
    """[N] expected variance of pass@k of each problem under n new answers.

    E over p of Var(estimate | p) = E[estimate^2] - E[(1 - (1 - p)^k)^2] with p from the beta posterior of
    `rate_variances`: the first is a sum over the beta-binomial counts, the second a pair of beta moments.
    """
    from agentrl.evaluation.statistics.estimators import pass_at_k_table

    a, b = rate_prior(right, drawn)
    result = np.empty(len(right))
    tables: dict[int, FloatArray] = {}
    known: dict[tuple[int, int], float] = {}
    for row, key in enumerate(zip(right.tolist(), drawn.tolist(), strict=True)):
        if key not in known:
            hits, n = key
            table = tables.setdefault(n, pass_at_k_table(n, k))
            alpha, beta = float(a[..., 0]) + hits, float(b[..., 0]) + n - hits
            second = float(_beta_binomial(n, alpha, beta) @ table**2)
            squared_mean = 1.0 - 2.0 * _miss(alpha, beta, k) + _miss(alpha, beta, 2 * k)
            known[key] = max(0.0, second - squared_mean)
        result[row] = known[key]
    return result


def rate_prior(right: IntArray, drawn: IntArray) -> tuple[FloatArray, FloatArray]:
    """Beta prior (a, b), each [..., 1], with the mean and the within-problem variance of the data.

    Half a problem's worth of undecided answers is added to the variance: without it a handful of problems
    that all came out the same would prove that every problem is decided.
    """
    count = right.shape[-1]
    total = drawn.sum(axis=-1, keepdims=True)
    mean = np.clip(right.sum(axis=-1, keepdims=True) / total, 0.5 / total, 1.0 - 0.5 / total)
    spread = mean * (1.0 - mean)
    if drawn.min() > 1:
        within = (right * (drawn - right) / (drawn * (drawn - 1.0))).sum(axis=-1, keepdims=True)
        within = (within + 0.5) / (count + 2.0)
    else:
        within = spread
    share = np.minimum(within / spread, 0.999)
    strength = np.clip(share / (1.0 - share), 1e-3, 1e3)  # a + b, from E p (1 - p) = spread s / (s + 1)
    return mean * strength, (1.0 - mean) * strength


def _miss(alpha: float, beta: float, k: int) -> float:
    """E (1 - p)^k for p from Beta(alpha, beta)."""
    steps = np.arange(k)
    return float(np.prod((beta + steps) / (alpha + beta + steps)))


def _beta_binomial(n: int, alpha: float, beta: float) -> FloatArray:
    """[n + 1] chances of 0..n right answers."""
    # P(c + 1) / P(c) = (n - c)(alpha + c) / ((c + 1)(beta + n - c - 1)), in logarithms against underflow
    counts = np.arange(n)
    steps = np.log((n - counts) * (alpha + counts)) - np.log((counts + 1.0) * (beta + n - counts - 1.0))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


# ---- differences -------------------------------------------------------------------------------------------


def paired_interval(differences: Sequence[float] | FloatArray) -> Interval:
    """Interval of the mean difference over new problems, from one difference in [-1, 1] per problem."""
    differences = np.asarray(differences, float)
    low, high, few = paired_bounds(differences[None])
    return Interval(float(low[0]), float(high[0]), "agresti-min" if few[0] else "student-t")


def paired_bounds(differences: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Bounds [R] from differences [R, N], and where they are those of Agresti and Min.

    Student's t; or, for few changes, and where nearly all problems changed fully or all by the same amount,
    the adjustment of Agresti and Min (2005), which adds half a problem that changed each way and one that
    did not.
    """
    count = differences.shape[1]
    changed = (np.abs(differences) > 1e-12).sum(axis=1)
    mean = differences.mean(axis=1)
    few = (changed < FEW_CHANGES) | ((1.0 - np.abs(mean)) * count < NEAR_EDGE - 1e-9) | (count < 2)
    few |= np.ptp(differences, axis=1) <= 1e-12  # alike by chance: their spread says nothing
    spread = np.sqrt(differences.var(axis=1, ddof=1) / count) if count > 1 else np.zeros(len(mean))
    quantile = student_t_quantile(0.5 + LEVEL / 2.0, max(count - 1, 1))
    padded = differences.sum(axis=1) / (count + 2.0)
    padded_variance = ((differences**2).sum(axis=1) + 1.0) / (count + 2.0) - padded**2
    padded_half = normal_quantile(0.5 + LEVEL / 2.0) * np.sqrt(padded_variance / (count + 2.0))
    low = np.where(few, padded - padded_half, mean - quantile * spread)
    high = np.where(few, padded + padded_half, mean + quantile * spread)
    return np.clip(low, -1.0, 1.0), np.clip(high, -1.0, 1.0), few


def same_problems_difference(difference: float, variances: FloatArray) -> Interval:
    """Normal interval of a difference over these problems.

    `variances`: [N] sum of both results' variances per problem under new answers.
    """
    half = normal_quantile(0.5 + LEVEL / 2.0) * float(np.sqrt(variances.sum())) / len(variances)
    return Interval(max(-1.0, difference - half), min(1.0, difference + half), "normal")
