"""Reward shapers: the reward that an episode counts for.

A shaper may remember episodes that were folded (`fold`), by prompt; what it remembers is part of the
checkpoint. It is asked for one episode several times, so asking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from agentrl.config.part import Part
from agentrl.config.ranges import Count, Positive, Range
from agentrl.episode import Episode


class Shaper(Protocol):
    """Gives the reward that an episode counts for, in the range of its environment.

    It may have `fold(episode)`, told each episode once, after its reward was counted; it then needs
    `state_dict()` and `load_state_dict(state)`, of plain numbers, texts, lists and tables.
    """

    def __call__(self, episode: Episode) -> float:
        """The reward of an episode."""
        ...


def call_reward(calls: int, fewest: int, smooth: float) -> float:
    """What `calls` tool calls leave of a right answer's reward, where `fewest` have been enough.

    1 at the fewest; sin(pi calls / (calls + fewest)) above; cos(pi calls / (2 calls + smooth)) where no call
    was needed.

    Args:
        calls: of this episode.
        fewest: of right answers to this prompt, this one included.
        smooth: how little one call costs where none was needed.
    """
    if fewest > calls:
        raise ValueError(f"{calls} calls are fewer than the fewest, {fewest}: count the episode in first")
    if fewest == 0:
        return math.cos(math.pi * calls / (2 * calls + smooth)) if calls else 1.0
    return math.sin(math.pi * calls / (calls + fewest))


class OTCShaper:
    """A right answer counts for less with more tool calls than were ever needed for its prompt (OTC).

    reward = share x call_reward x reward, so a wrong answer stays one, whatever it called; the additive form
    was unstable (paper). The fewest calls are those of the last `memory` right answers to the prompt, the
    episode itself counted in first: otherwise an answer that needs fewer calls than ever before would score
    0.

    Source: arXiv 2504.14870, formula quoted in reading notes, table of it computed; its constants were not
    found, those here are ours.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `otc`."""

        smooth: Positive = 1.0
        """c: at 1, one call where none was needed leaves a half."""
        share: Annotated[float, Range(above=0, most=1)] = 1.0
        """alpha: of the reward of a right answer with the fewest calls."""
        memory: Count = 64
        """Right answers of a prompt that are remembered; a finite number, so that the fewest can rise
        again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._calls: dict[str, list[int]] = {}

    def __call__(self, episode: Episode) -> float:
        """The reward of an episode."""
        low, reward = episode.reward_range[0], episode.reward
        assert reward is not None, "failed episodes are not scored"
        if episode.score <= 0.5:
            return reward
        calls = len(episode.tool_calls)
        fewest = min([calls, *self._calls.get(episode.prompt_id, ())])
        kept = self._settings.share * call_reward(calls, fewest, self._settings.smooth)
        return low + (reward - low) * kept

    def fold(self, episode: Episode) -> None:
        """Remember the calls of a right answer."""
        if episode.score > 0.5:
            calls = self._calls.setdefault(episode.prompt_id, [])
            calls.append(len(episode.tool_calls))
            del calls[: -self._settings.memory]

    def state_dict(self) -> dict[str, Any]:
        """Calls of right answers, by prompt."""
        return {"calls": {prompt: list(calls) for prompt, calls in self._calls.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self._calls = {prompt: list(calls) for prompt, calls in state["calls"].items()}


class SoftLengthShaper(Part["SoftLengthShaper.Settings"]):
    """Within `margin` tokens of the limit an episode pays, linearly up to the whole penalty (DAPO).

    The penalty is a share of the environment's range; a reward does not fall below that range, so an answer
    that is wrong already pays nothing more.

    Source: arXiv 2503.14476 (equation 13), formula as it is commonly given: there rewards are -1 and 1 and
    the penalty is 1.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `soft_length`."""

        limit: Count = 16384
        """Sampled tokens at which the whole penalty is paid; as `rollout.max_tokens`."""
        margin: Count = 4096
        """Tokens before the limit at which it begins."""
        penalty: Annotated[float, Range(above=0, most=1)] = 0.5
        """Share of the range of the reward."""

    def __call__(self, episode: Episode) -> float:
        """The reward of an episode."""
        settings, (low, high) = self.settings, episode.reward_range
        assert episode.reward is not None, "failed episodes are not scored"
        over = (episode.num_sampled - settings.limit + settings.margin) / settings.margin
        paid = min(max(over, 0.0), 1.0) * settings.penalty * (high - low)
        return max(episode.reward - paid, low)
