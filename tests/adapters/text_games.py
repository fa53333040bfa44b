"""A text game of Gymnasium's kind, registered by its file."""

from __future__ import annotations

from typing import Any

import gymnasium


class Guess(gymnasium.Env):
    """Guess a word of three letters."""

    def __init__(self, tries: int = 3, breaks: bool = False) -> None:
        self.action_space = gymnasium.spaces.Text(max_length=3, min_length=3)
        self.observation_space = gymnasium.spaces.Text(max_length=100)
        self.tries, self.breaks = tries, breaks

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = str(self.np_random.choice(["cat", "dog", "cow"]))
        self.left = self.tries
        return f"Guess an animal; {self.left} tries.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.breaks:
            raise ConnectionError("the game's server is gone")
        self.left -= 1
        right = action == self.word
        return ("Right." if right else f"No; {self.left} left."), float(right), right, self.left == 0, {}


gymnasium.register("Guess-v0", Guess)
