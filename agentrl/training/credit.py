"""What each episode of a batch gets credit for, and what its prompt is worth afterwards.

Two moments of one step, in this order: `assign` reads all baselines of a batch and makes advantages,
`fold` puts its rewards into the value tracker. So no baseline contains a reward it is subtracted from.
Between them lies the learner's step, of which this module knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.advantage import Estimator
from agentrl.algorithms.value_tracker import Fold
from agentrl.config.settings import Settings
from agentrl.episode import Episode, replace_reward
from agentrl.errors import AgentRLError
from agentrl.training.prompts import PromptPool


@dataclass(frozen=True, slots=True)
class Assignment:
    """Baselines and advantages of one batch of B episodes."""

    trained: list[Episode]
    """The episodes that are learned from."""
    advantages: NDArray[np.float64]
    """One per trained episode."""
    baselines: NDArray[np.float64]
    """[B]"""
    masked: dict[str, str]
    """Episodes that are folded but not learned from, with the reason."""


class Credit:
    """Values, advantages and folds of one run.

    Args:
        settings: of the run.
        pool: prompts, tracker and samplers.
        estimator: rewards to advantages.
    """

    def __init__(self, settings: Settings, pool: PromptPool, estimator: Estimator) -> None:
        self._settings, self._pool, self._estimator = settings, pool, estimator
        self.clocks = [0.0]
        """The tracker's drift clock when each version began, by version."""

    @property
    def clock_tokens(self) -> int:
        """Tokens that the learner scores again after a batch to advance the clock."""
        tracker = self._settings.tracker
        return tracker.clock_tokens if tracker.drift == "clock" else 0

    def assign(self, batch: Sequence[Episode]) -> Assignment:
        """Baselines of all B episodes, then advantages of those that are learned from.

        Raises:
            AgentRLError: all of them were cut off, and such episodes are not learned from.
        """
        prompts = np.array([self._pool.index[episode.prompt_id] for episode in batch])
        baselines = self._pool.tracker.values(prompts)
        masked: dict[str, str] = {}
        if self._settings.rollout.truncated == "mask":
            masked = {e.episode_id: "truncated" for e in batch if e.stop_reason.truncated}
        kept = [place for place, episode in enumerate(batch) if episode.episode_id not in masked]
        trained = [batch[place] for place in kept]
        if not trained:
            raise AgentRLError(
                f"all {len(batch)} episodes of a batch were cut off by a token limit, and rollout.truncated "
                '= "mask" leaves none to learn from: raise rollout.max_tokens (or engine.context_tokens), '
                'or set rollout.truncated = "zero"'
            )
        groups = [episode.group or 0 for episode in trained] if self._estimator.group_size > 1 else None
        advantages = self._estimator(
            [episode.score for episode in trained], baselines=baselines[kept], groups=groups
        )
        return Assignment(trained, advantages, baselines, masked)

    def advance(self, drift: float) -> None:
        """A batch moved the policy by `drift`, in nats a token: the next version begins."""
        if self._settings.tracker.drift == "clock":
            self._pool.tracker.advance_clock(drift)
        self.clocks.append(self._pool.tracker.clock)

    def fold(self, batch: Sequence[Episode], drifts: Sequence[float | None] | None = None) -> list[Fold]:
        """Fold a batch in order of dispatch; then its prompts can be drawn again.

        Args:
            batch: whole units (episodes, or groups one after the other).
            drifts: of each episode's prompt, where they were measured by replay.

        Returns:
            What each fold did, in the order of the batch.
        """
        folds: dict[int, Fold] = {}
        for place in sorted(range(len(batch)), key=lambda place: batch[place].dispatch_index):
            folds[place] = self.fold_one(batch[place], None if drifts is None else drifts[place])
        for start in range(0, len(batch), self._estimator.group_size):
            self._pool.folded(self._pool.index[batch[start].prompt_id])
        return [folds[place] for place in range(len(batch))]

    def fold_one(self, episode: Episode, drift: float | None = None) -> Fold:
        """Fold one episode into the tracker; whether its prompt can be drawn again is for others to say."""
        return self._pool.tracker.fold(
            self._pool.index[episode.prompt_id],
            episode.score,
            start_clock=self.clocks[min(episode.start_version, len(self.clocks) - 1)],
            drift=drift,
        )

    def keeps(self, unit: Sequence[Episode]) -> bool:
        """Whether a unit is learned from (all are, but for dynamic sampling)."""
        return bool(self._estimator.keep([episode.score for episode in unit], [0] * len(unit)).all())


def shuffled(batch: Sequence[Episode], seed: int) -> list[Episode]:
    """The batch with its scores dealt out anew: a control that has nothing to learn.

    An episode gets another one's score, mapped to its own reward range: environments of a mixture may differ.
    """
    order = np.random.default_rng(seed).permutation(len(batch))
    return [
        replace_reward(episode, _reward_of(episode, batch[place].score))
        for episode, place in zip(batch, order, strict=True)
    ]


def _reward_of(episode: Episode, score: float) -> float:
    low, high = episode.reward_range
    return min(max(low + score * (high - low), low), high)
