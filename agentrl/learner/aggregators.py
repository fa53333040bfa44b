"""How the losses of the tokens of a mini-batch become one number: a weight for each of them.

An aggregator takes how many trainable tokens each of the S sequences of a mini-batch has, [S] int64, and
returns the weight of a token of each of them, [S] float64; the loss is the weighted sum over all tokens.
So it is exact however the mini-batch is cut into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentrl.config.ranges import Positive

Counts: TypeAlias = NDArray[np.int64]
Weights: TypeAlias = NDArray[np.float64]


def token_mean(counts: Counts) -> Weights:
    """[S] 1 / all tokens: every token weighs the same, long sequences more (DAPO, arXiv 2503.14476)."""
    return np.full(len(counts), 1.0 / counts.sum())


def sequence_mean(counts: Counts) -> Weights:
    """[S] 1 / (S tokens of the sequence): every sequence weighs the same (GRPO, arXiv 2402.03300)."""
    return 1.0 / (len(counts) * counts)


class ConstantSum:
    """[S] 1 / (S length): the sum of a sequence's losses over a constant (Dr. GRPO, arXiv 2503.20783)."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `constant`."""

        length: Positive = 1024.0
        """Tokens that a sequence's sum is divided by, whatever its length."""

    def __init__(self, settings: Settings) -> None:
        self._length = settings.length

    def __call__(self, counts: Counts) -> Weights:
        """[S] the same weight for every token."""
        return np.full(len(counts), 1.0 / (len(counts) * self._length))
