"""The demo's task with prompts of uneven difficulty: half of the training prompts can never be solved.

Loaded by `benchmarks.presets` as `--env.name=benchmarks.uneven_arithmetic:UnevenArithmetic`.
"""

from __future__ import annotations

from typing import Literal

from agentrl_envs.arithmetic import Arithmetic


class UnevenArithmetic(Arithmetic):
    """Every second training row states a wrong answer, as mislabelled data does; held-out rows are right."""

    @classmethod
    def generate_rows(cls, count: int, *, split: Literal["train", "test"], seed: int = 0):
        """Rows as the demo's; of the training ones, every second has 7 added to its answer."""
        rows = super().generate_rows(count, split=split, seed=seed)
        if split == "test":
            return rows
        return [
            row | {"answer": str(int(row["answer"]) + 7)} if place % 2 else row
            for place, row in enumerate(rows)
        ]
