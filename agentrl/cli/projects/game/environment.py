"""A game of several turns: the environment answers each message, and ends the episode itself."""

import re

from agentrl import Env, Finish


class Guess(Env):
    """Guess a number of which a row tells the range, in a few turns; sooner pays more."""

    system_prompt = ""
    max_turns = 5
    required_fields = ("low", "high", "secret")
    example_rows = (
        {"id": "near the low end", "low": 20, "high": 28, "secret": 21},
        {"id": "the high end", "low": 39, "high": 47, "secret": 47},
    )
    cost: float = 0.1  # of another guess; a setting: --env.settings.cost=0.2

    def prompt(self, row):
        self.secret, self.guesses = row["secret"], 0
        return f"{row['low']}-{row['high']}?"  # the bundled model has no words to spare

    def reply(self, message):
        """What the model is told after a message of its own; None ends the episode."""
        self.guesses += 1
        found = re.findall(r"\d+", message)
        if found and int(found[-1]) == self.secret:
            raise Finish(reward=1.0 - self.cost * (self.guesses - 1))
        if not found:
            return "a number?"
        return "higher" if int(found[-1]) < self.secret else "lower"

    def reward(self, row, answer):
        return 0.0  # not found in the turns there were
