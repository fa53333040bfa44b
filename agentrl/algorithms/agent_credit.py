"""Credit of agents: each segment of an episode learns from the reward of the agent that speaks in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from agentrl.algorithms.advantage import Advantages, CreditBatch, FloatArray, Normalising, given_baselines
from agentrl.algorithms.group_estimators import leave_one_out
from agentrl.config.part import Part
from agentrl.config.ranges import Range
from agentrl.episode import Episode


class AgentEstimator(Part["AgentEstimator.Settings"]):
    """Of each agent: its own reward less what others of its name got, else the score less the value.

    An agent to which the environment gave a reward of its own (`reward_agent`) is credited with that; its
    baseline is the mean of the agents of the same name in the *other* episodes of the batch. Agents without
    one share the episode's score, whose baseline is the tracker's value. All segments of an agent get its
    advantage.

    Source: the policy gradient of each agent's own return; its baselines are derived here, of no paper.
    """

    requires = ("baselines",)

    @dataclass(frozen=True, slots=True)
    class Settings(Normalising.Settings):
        """Settings of `agents`."""

        normalise: Literal["batch", "none"] = "batch"
        """Divide by the deviation over all agents of the batch, or not."""
        shared: Annotated[float, Range(least=0, most=1)] = 0.0
        """Share of the episode's advantage in that of an agent with its own reward: 1 credits all alike."""

    def __call__(self, batch: CreditBatch) -> Advantages:
        """Of each episode and segment, [T] advantages; needs baselines and episodes."""
        whole = np.asarray(batch.scores) - given_baselines(batch)
        own = self._own(batch.episodes, whole)
        units = [
            [own.get((at, segment.agent), float(whole[at])) for segment in episode.segments]
            for at, episode in enumerate(batch.episodes)
        ]
        flat, scale = np.array([one for episode in units for one in episode]), 1.0
        if self.settings.normalise == "batch" and len(flat) > 1:
            scale = max(float(flat.std(ddof=1)), self.settings.deviation_floor)
        return [_of_tokens(episode, of, scale) for episode, of in zip(batch.episodes, units, strict=True)]

    def _own(self, episodes: Sequence[Episode], whole: FloatArray) -> dict[tuple[int, str], float]:
        """By episode and agent: the advantage of those that have rewards of their own."""
        shared, found = self.settings.shared, dict[tuple[int, str], float]()
        for name in sorted({name for episode in episodes for name in episode.agent_rewards}):
            who = [at for at, episode in enumerate(episodes) if name in episode.agent_rewards]
            less = leave_one_out([_own_score(episodes[at], name) for at in who], np.zeros(len(who), np.int64))
            for at, one in zip(who, less.tolist(), strict=True):
                found[at, name] = shared * float(whole[at]) + (1.0 - shared) * one
        return found


def _own_score(episode: Episode, name: str) -> float:
    """The reward of one agent, mapped to [0, 1] like the episode's."""
    low, high = episode.reward_range
    return (episode.agent_rewards[name] - low) / (high - low)


def _of_tokens(episode: Episode, advantages: Sequence[float], scale: float) -> list[FloatArray]:
    """[T] of each segment: one number for all its tokens."""
    return [
        np.full(len(segment), advantage / scale)
        for segment, advantage in zip(episode.segments, advantages, strict=True)
    ]
