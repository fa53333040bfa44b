"""An estimator: what is written later in an episode gets more of its credit.

agentrl train run.toml --estimator.kind examples/parts/late_credit.py:LateCredit --estimator.half_life 200
"""

import numpy as np

from agentrl.config.part import Part
from agentrl.config.ranges import Positive


class LateCredit(Part):
    """Score less value, halved for every `half_life` tokens that follow."""

    requires = ("baselines",)

    class Settings:
        """Settings of the section `[estimator]`."""

        half_life: Positive = 500.0
        """Tokens before the end of a segment at which half of the credit is given."""

    def __call__(self, batch):
        """Of each episode and segment, [T] advantages."""
        advantages = batch.scores - batch.baselines
        return [
            [
                advantage * 0.5 ** (np.arange(len(segment))[::-1] / self.settings.half_life)
                for segment in episode.segments
            ]
            for episode, advantage in zip(batch.episodes, advantages, strict=True)
        ]
