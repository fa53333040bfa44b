"""RiskPO: bundles of episodes are credited by where their sum stands among tracked quantiles (code read).

Single-stream: five episodes of a batch, of whatever prompts, are a bundle, so credit is shared by prompts
that have nothing to do with each other; the released division by a question's own deviation is left out.

agentrl train run.toml --estimator.kind examples/methods/risk.py:RiskPO
"""

import numpy as np

from agentrl.config.ranges import Count, Positive

LEVELS = np.round(np.arange(0.05, 1.0, 0.05), 2)
LOW, HIGH = 0.2, 0.8


class RiskPO:
    """Mixed value at risk between the quantiles of .2 and .8, and `tail` times the mean below .2.

    As released every advantage is at most 0: nothing is reinforced, the low tail is pushed away. `centred`
    takes the mean of the batch away."""

    class Settings:
        """Settings of the section `[estimator]`."""

        bundle: Count = 5
        """Episodes of a bundle."""
        tail: Positive = 1.5
        """Weight of the low tail."""
        centred: bool = True
        """Take away the mean of the batch (an option of the released code)."""
        rate: Positive = 0.1
        """Of the steps of the quantiles."""

    def __init__(self, settings):
        self.settings = settings
        self.quantiles = LEVELS * settings.bundle
        self.waiting = []

    def __call__(self, batch):
        """[B] advantages; episodes that fill no bundle get 0."""
        size, result = self.settings.bundle, np.zeros(len(batch.scores))
        whole = len(result) // size * size
        if whole:
            sums = batch.scores[:whole].reshape(-1, size).sum(axis=1)
            result[:whole] = np.repeat(self.advantage(sums), size)
        return result

    def advantage(self, sums):
        """Of bundles, from their sums."""
        low, high = (self.quantiles[np.flatnonzero(level == LEVELS)[0]] for level in (LOW, HIGH))
        between = (np.maximum(sums - low, 0) - np.maximum(sums - high, 0) + low - high) / (HIGH - LOW)
        below = -np.maximum(low - sums, 0) / LOW
        mixed = (self.settings.tail * below + between) / (self.settings.tail + 1)
        return mixed - mixed.mean() if self.settings.centred else mixed

    def fold(self, episode):
        """Move the quantiles by each full bundle of folded episodes."""
        self.waiting.append(episode.score)
        if len(self.waiting) == self.settings.bundle:
            self.quantiles = self.quantiles + self.settings.rate * (
                LEVELS - (sum(self.waiting) < self.quantiles)
            )
            self.waiting = []

    def state_dict(self):
        """Quantiles, and scores that wait for a full bundle."""
        return {"quantiles": self.quantiles.tolist(), "waiting": list(self.waiting)}

    def load_state_dict(self, state):
        """Go back to a saved state."""
        self.quantiles, self.waiting = np.array(state["quantiles"]), list(state["waiting"])
