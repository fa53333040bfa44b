"""A sum tree: draw an index with probability proportional to its weight, change a weight, both O(log N).

It knows nothing of prompts. Inner nodes are always recomputed as left + right, never adjusted by a
difference, so the tree is a function of its leaves alone: rounding does not pile up over millions of
updates, and a tree rebuilt from saved leaves draws the same indices as the one that was saved.
"""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray


class SumTree:
    """N weights at the leaves of a complete binary tree of sums.

    Args:
        weights: [N] finite and at least 0.
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._count = len(weights)
        self._size = 1 << max(0, (self._count - 1).bit_length())
        # `array` is much faster than NumPy for single elements; the view beside it serves bulk work.
        self._nodes = array("d", bytes(8 * 2 * self._size))
        self._view = np.frombuffer(self._nodes, dtype=np.float64)
        self.rebuild(weights)

    def __len__(self) -> int:
        return self._count

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return self._nodes[1]

    @property
    def weights(self) -> NDArray[np.float64]:
        """[N] the weights, as a copy."""
        return self._view[self._size : self._size + self._count].copy()

    def rebuild(self, weights: NDArray[np.float64]) -> None:
        """Set all weights [N] at once."""
        view = self._view
        view[self._size : self._size + self._count] = weights
        level = self._size
        while level > 1:
            half = level // 2
            np.add(view[level : 2 * level : 2], view[level + 1 : 2 * level : 2], out=view[half:level])
            level = half

    def set(self, index: int, weight: float) -> None:
        """Set one weight."""
        nodes, node = self._nodes, index + self._size
        if nodes[node] == weight:
            return
        nodes[node] = weight
        while node > 1:
            node >>= 1
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]

    def find(self, point: float) -> int:
        """The index whose share of [0, total) holds `point`; never one of weight 0 unless all are."""
        nodes, node = self._nodes, 1
        while node < self._size:
            node *= 2
            left = nodes[node]
            # Rounding may carry `point` to the very end of a node: do not step into an empty side.
            if point >= left and nodes[node + 1] > 0.0:
                point -= left
                node += 1
        return node - self._size
