"""MC-GRPO: score less the group's median, over its median absolute deviation (arXiv 2601.22582, code read).

agentrl train run.toml --estimator.kind examples/methods/mc_grpo.py:MCGRPO --estimator.group_size 9
"""

import numpy as np

from agentrl.config.part import Part
from agentrl.config.ranges import Positive


class MCGRPO(Part):
    """Needs groups of an odd size, G + 1; the episode that is the median gets 0, as in the paper it is
    dropped.

    With rewards of 0 and 1 the deviation of an odd group is always 0, so the released code gives the minority
    +-1000 and the majority nothing: `bound` keeps that finite.
    """

    requires = ("groups",)

    class Settings:
        """Settings of the section `[estimator]`."""

        bound: Positive = 3.0
        """Advantages are clipped at +-bound (ours)."""

    def __call__(self, batch):
        """[B] advantages."""
        result = np.zeros(len(batch.scores))
        for group in np.unique(batch.groups):
            scores = batch.scores[batch.groups == group]
            distance = scores - np.median(scores)
            result[batch.groups == group] = distance / (np.median(np.abs(distance)) + 1e-3)
        return np.clip(result, -self.settings.bound, self.settings.bound)
