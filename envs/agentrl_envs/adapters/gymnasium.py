"""`env.name = "gymnasium:ID"`: an environment of Gymnasium, one message of the model for each step.

Observations become text, the model's message an action. The reward is the sum of the steps' rewards. Knows
nothing of what the environments are.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import EnvError, EnvNotFound
from ..messages import Finish
from ..raised import error_text
from ..registry import load_file
from .making import RangedEnv, make_class, seeded_rows

__all__ = ["Gymnasium", "gymnasium_env"]

_MARKED = re.compile(r"\x1b\[[\d;]+m(.*?)\x1b\[0m", re.DOTALL)


class Gymnasium(RangedEnv):
    """Play the game, one action a message."""

    max_turns = 50
    id: ClassVar[str] = ""

    arguments: dict[str, Any] = {}  # noqa: RUF012 - a setting; each instance has its own
    """Arguments of `gymnasium.make`."""
    actions: list[str] = []  # noqa: RUF012
    """Words for the actions 0, 1, ... of a discrete space; the model writes the word or the number."""
    rules: str = ""
    """What stands before the first observation."""

    def prompt(self, row: Mapping[str, Any]) -> str:
        """Rules, first observation, and how to act."""
        self._total, self._steps = 0.0, 0
        self._game = _made(self.id, self.arguments)
        if "render_mode" not in self.arguments and self._draws():
            self._game.close()
            self._game = _made(self.id, {**self.arguments, "render_mode": "ansi"})
        seed = row.get("seed")
        observation, _ = self._game.reset(
            seed=None if seed is None else int(seed), options=row.get("options")
        )
        return "\n\n".join(filter(None, (self.rules, self._shown(observation), self._how_to_act())))

    def reply(self, message: str) -> str:
        """Take one step. A message without a possible action is answered, and no step."""
        try:
            action = self._action(message)
        except ValueError as error:
            self.speaker.count("gymnasium/no_action")
            return f"{error} {self._how_to_act()}"
        observation, reward, terminated, truncated, _ = self._game.step(action)
        self._total += float(reward)
        self._steps += 1
        self.reward_turn(float(reward))
        if terminated or truncated:
            raise Finish(reward=self._total, text=self._shown(observation))
        return self._shown(observation)

    def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """The sum of the steps' rewards; the lowest where no step was taken."""
        return self._total if self._steps else self.lowest

    def close(self) -> None:
        """Close the game."""
        if (game := getattr(self, "_game", None)) is not None:
            game.close()

    @classmethod
    def generate_rows(
        cls, count: int, *, split: Literal["train", "test"], seed: int = 0
    ) -> list[dict[str, Any]]:
        """`count` rows `{"id", "seed"}`; no seed belongs to both splits."""
        return seeded_rows(cls.id, count, split, seed)

    def _draws(self) -> bool:
        """Whether the game can be shown as text, and its observations are none."""
        text = type(self._game.observation_space).__name__ == "Text"
        return not text and "ansi" in (self._game.metadata.get("render_modes") or ())

    def _shown(self, observation: Any) -> str:
        if self._game.render_mode == "ansi":
            # Terminal colours mark the player's place; without them a map would not say it.
            return _MARKED.sub(r"[\1]", str(self._game.render())).strip("\n")
        if isinstance(observation, str):
            return observation
        return json.dumps(self._game.observation_space.to_jsonable([observation])[0], default=str)

    def _how_to_act(self) -> str:
        space, kind = self._game.action_space, type(self._game.action_space).__name__
        what = {"Text": "text", "Discrete": ""}.get(kind, f"JSON for {space}")
        if kind == "Discrete":
            start = int(space.start)
            words = [f" ({word})" for word in self.actions] or [""] * int(space.n)
            what = ", ".join(f"{start + i}{word}" for i, word in enumerate(words))
        return f"Write one action between <action> and </action>: {what}"

    def _action(self, message: str) -> Any:
        """The action that a message states. Raises ValueError in words for the model."""
        said = message.rpartition("</think>")[2]
        before, closed, _ = said.rpartition("</action>")
        tagged = bool(closed) and "<action>" in before
        text = (before.rpartition("<action>")[2] if tagged else said).strip()
        space, kind = self._game.action_space, type(self._game.action_space).__name__
        action: Any = None
        if kind == "Text":
            action = text
        elif kind == "Discrete" and text.lower() in (words := [word.lower() for word in self.actions]):
            action = int(space.start) + words.index(text.lower())
        else:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                value = json.loads(text)
                action = value if kind == "Discrete" else space.from_jsonable([value])[0]
        possible = False
        with contextlib.suppress(Exception):  # spaces look at anything, and stumble over some
            possible = not isinstance(action, bool) and bool(space.contains(action))
        if not possible:
            raise ValueError(f"No action: {text[:200]!r}.")
        return action


def gymnasium_env(rest: str, settings: Mapping[str, Any]) -> type[Gymnasium]:
    """The environment of `env.name = "gymnasium:ID"`.

    `ID` as `gymnasium.make` takes it, `module:ID` too; `file.py:ID` runs a file that registers it.

    Raises:
        EnvNotFound: nothing is registered under that name.
        EnvError: it cannot be made.
    """
    import gymnasium

    file, colon, name = rest.rpartition(":")
    if colon and file.endswith(".py"):
        load_file(Path(file))
        rest = name
    try:
        gymnasium.spec(rest)
    except (gymnasium.error.Error, ImportError) as error:
        near = difflib.get_close_matches(rest, gymnasium.registry, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f": {error_text(error)}"
        raise EnvNotFound(f"Gymnasium knows no environment {rest!r}{hint}") from error
    body = {"id": rest, "__doc__": f"Play {rest}, one action a message."}
    made, given = make_class(Gymnasium, body, settings)
    _made(rest, given.get("arguments", {})).close()
    return made


def _made(name: str, arguments: Mapping[str, Any]) -> Any:
    """The game. EnvError where `gymnasium.make` refuses."""
    import gymnasium

    try:
        return gymnasium.make(name, **arguments)
    except Exception as error:
        raise EnvError(f"gymnasium.make({name!r}, {arguments}): {error_text(error)}") from error
