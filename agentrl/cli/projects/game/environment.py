"""A game of several turns: the environment answers each message, and ends the episode itself."""

import re

from agentrl import Env, Finish


class Guess(Env):
    """Guess a number in a range that is told; the nearer the last of three guesses, the more it pays."""

    system_prompt = ""
    max_turns = 3
    required_fields = ("low", "high", "secret")
    example_rows = (
        {"id": "near the low end", "low": 200, "high": 600, "secret": 211},
        {"id": "near the high end", "low": 400, "high": 800, "secret": 798},
    )
    cost: float = 0.0  # of another guess; a setting: --env.settings.cost=0.1

    def prompt(self, row):
        self.secret, self.guesses = row["secret"], 0
        return f"{row['low']}-{row['high']}?"  # the bundled model has no words to spare

    def reply(self, message):
        """What the model is told after a message of its own; None ends the episode."""
        self.guesses += 1
        guess = number_in(message)
        if guess == self.secret:
            raise Finish(reward=1.0 - self.cost * (self.guesses - 1))
        if self.guesses == self.max_turns:
            return None
        if guess is None:
            return "?"
        return "+" if guess < self.secret else "-"  # higher, lower: signs are what the bundled model knows

    def reward(self, row, answer):
        """Of the last guess, where none was right: the nearer the more, and half of it a whole range away."""
        guess = number_in(answer or "")
        if guess is None:
            return 0.0
        size = row["high"] - row["low"]
        near = size / (size + abs(guess - row["secret"]))
        return max(0.0, near - self.cost * (self.guesses - 1))


def number_in(text):
    """The last number of a message, None where there is none."""
    found = re.findall(r"\d{1,9}", text)
    return int(found[-1]) if found else None
