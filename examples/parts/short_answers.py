"""A reward shaper: an episode that used many tokens counts for less.

agentrl train run.toml --shaper.kind examples/parts/short_answers.py:ShortAnswers --shaper.tokens 300
"""

from agentrl.config.part import Part
from agentrl.config.ranges import Count


class ShortAnswers(Part):
    """Up to half of the reward is lost between `tokens` and twice as many."""

    class Settings:
        """Settings of the section `[shaper]`."""

        tokens: Count = 1000
        """Sampled tokens that cost nothing."""

    def __call__(self, episode):
        """The reward that the episode counts for."""
        over = min(max(episode.num_sampled / self.settings.tokens - 1.0, 0.0), 1.0)
        low = episode.reward_range[0]
        return low + (episode.reward - low) * (1.0 - 0.5 * over)
