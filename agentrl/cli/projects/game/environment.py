"""A game of several turns: the environment answers each message, and ends the episode itself."""

import re

from agentrl import Env, Finish


class Guess(Env):
    """Guess a number in a few turns; sooner pays more."""

    system_prompt = ""
    max_turns = 5
    required_fields = ("secret",)
    example_rows = ({"id": "low", "secret": 2}, {"id": "high", "secret": 9})
    top: int = 9  # a setting: --env.settings.top=100

    def prompt(self, row):
        self.secret, self.guesses = row["secret"], 0
        return f"1-{self.top}?"  # the bundled model has no words to spare

    def reply(self, message):
        """What the model is told after a message of its own; None ends the episode."""
        self.guesses += 1
        found = re.findall(r"\d+", message)
        if found and int(found[-1]) == self.secret:
            raise Finish(reward=1.0 - 0.1 * (self.guesses - 1))
        if not found:
            return "a number?"
        return "higher" if int(found[-1]) < self.secret else "lower"

    def reward(self, row, answer):
        return 0.0  # not found in the turns there were
