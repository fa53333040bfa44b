"""Exact tests of paired differences, and false discoveries among many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

EXACT_STATES = 4_000_000
"""Largest table of the exact sign-flip test; beyond it signs are drawn."""
FLIPS = 200_000
"""Draws of all signs, where the table would be larger."""


def sign_flip_test(differences: Sequence[Fraction]) -> tuple[float, str]:
    """Two-sided chance of a sum of differences at least this large when every sign is a fair coin.

    Exact for both estimands' null hypotheses: no difference on any problem (with as many answers in A as
    in B), and differences symmetric about 0 in the population. The distribution of the sum is computed on
    the common denominator of all differences; with one answer each it is the sign test of McNemar.

    Returns:
        The p-value and how it was made: `exact`, or `monte-carlo` where the table would be too large.
    """
    moved = [abs(value) for value in differences if value]
    if not moved:
        return 1.0, "exact"
    unit = math.lcm(*(value.denominator for value in moved))
    steps = [int(value * unit) for value in moved]
    observed = abs(int(sum(differences, Fraction(0)) * unit))
    total = sum(steps)
    if total <= EXACT_STATES // 8 and total * len(steps) <= 64 * EXACT_STATES:
        return _exact(steps, observed, total), "exact"
    return _drawn(np.array([float(value) for value in moved]), abs(float(sum(differences)))), "monte-carlo"


def _exact(steps: list[int], observed: int, total: int) -> float:
    """P(|sum| >= observed): the sum is 2 x (sum of the positive ones) - total."""
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    reach = 0
    for step in steps:
        shifted = np.zeros(reach + step + 1)
        shifted[: reach + 1] = chances[: reach + 1]
        shifted[step:] += chances[: reach + 1]
        reach += step
        chances[: reach + 1] = shifted / 2.0
    sums = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, chances[sums >= observed].sum()))


def _drawn(steps: np.ndarray, observed: float) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(FLIPS // 1000):
        signs = rng.integers(0, 2, size=(1000, len(steps))) * 2 - 1
        hits += int((np.abs(signs @ steps) >= observed - 1e-9).sum())
    return (hits + 1) / (FLIPS + 1)


def fisher_exact(right_a: int, drawn_a: int, right_b: int, drawn_b: int) -> float:
    """Two-sided p-value of Fisher's exact test: outcomes no likelier than the observed one."""
    right, drawn = right_a + right_b, drawn_a + drawn_b
    total = math.comb(drawn, right)
    ways = {
        c: math.comb(drawn_a, c) * math.comb(drawn_b, right - c)
        for c in range(max(0, right - drawn_b), min(drawn_a, right) + 1)
    }
    return min(1.0, sum(count for count in ways.values() if count <= ways[right_a]) / total)


def false_discovery(p_values: Sequence[float], rate: float) -> list[bool]:
    """Which are discoveries by Benjamini and Hochberg (1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    last = 0
    for rank, index in enumerate(order, 1):
        if p_values[index] <= rate * rank / len(p_values):
            last = rank
    chosen = set(order[:last])
    return [index in chosen for index in range(len(p_values))]
