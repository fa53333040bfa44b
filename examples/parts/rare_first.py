"""A prompt sampler: prompts that are seldom solved come first.

agentrl train run.toml --sampler.kind examples/parts/rare_first.py:RareFirst
"""

from agentrl.config.part import Part
from agentrl.config.ranges import Positive


class RareFirst(Part):
    """1 - value, and a floor, so that no prompt is forgotten."""

    class Settings:
        """Settings of the section `[sampler]`."""

        floor: Positive = 0.05
        """Weight of a prompt that is always solved."""

    def __call__(self, values, counts):
        """[N] weights, from values and effective counts."""
        return 1.0 - values + self.settings.floor
