"""Sums and minima along sequences that stand end to end: [N] in, [N] out."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def in_rows(values: Tensor, sequence: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """[S, L] a row for each sequence, filled up on the right, and [N] the column of each value.

    Args:
        values: [N]
        sequence: [N] 0, 0, ..., 1, 1, ...: which sequence each belongs to.
        fill: stands where a row has no value.
    """
    counts = torch.bincount(sequence)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(values), device=values.device) - starts[sequence]
    rows = values.new_full((len(counts), int(counts.max())), fill)
    rows[sequence, column] = values
    return rows, column


def minimum_before(values: Tensor, sequence: Tensor) -> Tensor:
    """[N] the smallest of the values that stand before each in its sequence; 0 for the first."""
    rows, column = in_rows(values, sequence, math.inf)
    before = torch.cat([rows.new_full((len(rows), 1), math.inf), rows[:, :-1]], dim=1).cummin(dim=1).values
    return torch.where(column == 0, 0.0, before[sequence, column])


def sum_from(values: Tensor, sequence: Tensor) -> Tensor:
    """[N] the sum of each value and of all that follow it in its sequence."""
    rows, column = in_rows(values, sequence, 0.0)
    return rows.flip(1).cumsum(1).flip(1)[sequence, column]
