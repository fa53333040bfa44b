"""Quantiles of the normal distribution and of Student's t. Knows nothing of what they are used for."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()


def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = probability."""
    return _NORMAL.inv_cdf(probability)


@lru_cache(maxsize=1024)
def student_t_quantile(probability: float, degrees: int) -> float:
    """t with P(T <= t) = probability, by bisection of its angle atan(t / sqrt(degrees)) to the last bit."""
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, degrees)
    if degrees > 1_000_000:
        return normal_quantile(probability)
    low, high = 0.0, math.pi / 2.0
    while (middle := 0.5 * (low + high)) not in (low, high):
        inside = _student_t_within(middle, degrees) < 2.0 * probability - 1.0
        low, high = (middle, high) if inside else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _student_t_within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)): the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = degrees % 2
    steps = np.arange(2 + odd, degrees, 2)
    total = 1.0 + float(np.cumprod((steps - 1.0) / steps * math.cos(angle) ** 2).sum())
    if not odd:
        return math.sin(angle) * total
    return 2.0 / math.pi * (angle + (math.sin(angle) * math.cos(angle) * total if degrees > 1 else 0.0))
