"""A baseline: the paper's tracker, with values pulled towards the mean of all prompts.

agentrl train run.toml --tracker.kind examples/parts/shrunk_values.py:Shrunk
"""

import numpy as np

from agentrl.algorithms.value_tracker import ValueTracker


class Shrunk(ValueTracker):
    """A prompt visited n times has n / (n + 4) of its own value, and the rest of the mean's."""

    def values(self, prompts):
        """[N] values of the prompts [N]."""
        visits = self.visits(prompts)
        own = visits / (visits + 4.0)
        return own * super().values(prompts) + (1.0 - own) * np.full(len(visits), self.first_visit_mean)
