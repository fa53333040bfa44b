"""ADORA: a group whose longest right answer is no longer than its wrong ones counts a tenth (code read).

The wish is for longer answers, against any economy of length or tools.

agentrl train run.toml --estimator.kind examples/methods/adora.py:ADORA --estimator.group_size 8
"""

import numpy as np

from agentrl.algorithms.advantage import grpo_advantages
from agentrl.config.part import Part
from agentrl.config.ranges import Share


class ADORA(Part):
    """GRPO's advantages, times `weight` in groups where the longest right answer is not above the mean wrong
    one."""

    requires = ("groups",)

    class Settings:
        """Settings of the section `[estimator]`."""

        weight: Share = 0.1
        """Of groups that are held back."""

    def __call__(self, batch):
        """[B] advantages."""
        lengths = np.array([episode.num_sampled for episode in batch.episodes], dtype=float)
        cut_off = np.array([episode.stop_reason.truncated for episode in batch.episodes])
        weights = np.ones(len(lengths))
        for group in np.unique(batch.groups):
            here = batch.groups == group
            right = lengths[here & (batch.scores > 0.5)]
            wrong = lengths[here & (batch.scores <= 0.5) & ~cut_off]
            if max(right, default=0.0) <= (wrong.mean() if len(wrong) else 0.0):
                weights[here] = self.settings.weight
        return weights * grpo_advantages(batch.scores, batch.groups, floor=0.1)
