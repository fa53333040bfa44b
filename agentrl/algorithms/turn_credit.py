"""Credit of turns: what was rewarded after a turn is credited to it, discounted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from agentrl.algorithms.advantage import Advantages, CreditBatch, FloatArray, Normalising, given_baselines
from agentrl.algorithms.group_estimators import leave_one_out
from agentrl.config.ranges import Range
from agentrl.episode import Episode


def returns(rewards: Sequence[float], score: float, discount: float) -> FloatArray:
    """[K] what follows each of K turns: its reward, and those after it, each turn discounted; the score is
    last.

    Args:
        rewards: [K] of the turns.
        score: of the whole episode, added to the last turn's reward.
        discount: between one turn and the next.
    """
    result = np.array(rewards, dtype=np.float64)
    result[-1] += score
    for turn in range(len(result) - 2, -1, -1):
        result[turn] += discount * result[turn + 1]
    return result


class TurnEstimator:
    """Of each turn: what follows it, less the prompt's value and what others got after the same turn.

    A turn's return is its own reward (the environment's `reward_turn`), the rewards of turns after it and the
    score of the episode, discounted by turns. Its baseline is the tracker's value, discounted alike, and the
    mean, over the *other* episodes of the batch, of what that leaves at the same turn; neither contains the
    turn's own reward. With `memory` the second part is the mean of what turns' rewards came to from that
    turn index on, tracked over episodes that were folded before: for small batches, and for turns that few
    episodes reach. All tokens of a turn get its advantage. With a discount below 1 the value's part depends
    on how many turns follow, which a turn may change: then it is not free of bias.

    Source: the policy gradient with a return for each turn; its baselines are derived here, of no paper.
    """

    requires = ("baselines",)

    @dataclass(frozen=True, slots=True)
    class Settings(Normalising.Settings):
        """Settings of `turns`."""

        normalise: Literal["batch", "none"] = "batch"
        """Divide by the deviation of all turns of the batch, or not."""
        discount: Annotated[float, Range(least=0, most=1)] = 1.0
        """Between one turn and the next."""
        memory: Annotated[float, Range(least=0, below=1)] = 0.0
        """What is kept, at each further episode, of the mean return of turns' rewards from a turn index on; 0
        tracks none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sums: list[float] = []
        self._counts: list[float] = []

    def __call__(self, batch: CreditBatch) -> Advantages:
        """Of each episode and segment, [T] advantages; needs baselines and episodes."""
        settings = self._settings
        residuals: list[FloatArray] = []
        for episode, score, value in zip(batch.episodes, batch.scores, given_baselines(batch), strict=True):
            rewards = [turn.reward or 0.0 for turn in episode.turns] or [0.0]
            left = np.arange(len(rewards))[::-1]
            residuals.append(
                returns(rewards, float(score), settings.discount) - value * settings.discount**left
            )
        counts = [len(one) for one in residuals]
        if settings.memory:
            flat = np.concatenate([one - self._promised(len(one)) for one in residuals])
        else:
            flat = leave_one_out(
                np.concatenate(residuals), np.concatenate([np.arange(count) for count in counts])
            )
        if settings.normalise == "batch" and len(flat) > 1:
            flat = flat / max(float(flat.std(ddof=1)), settings.deviation_floor)
        of_episodes = np.split(flat, np.cumsum(counts)[:-1])
        return [_of_tokens(*pair) for pair in zip(batch.episodes, of_episodes, strict=True)]

    def _promised(self, turns: int) -> FloatArray:
        """[K] mean returns from the first K turn indices on; 0 where none was seen.

        Not the sum of mean rewards of the episode's later turns: how many there are is the policy's doing.
        """
        known = [total / count for total, count in zip(self._sums, self._counts, strict=True)][:turns]
        return np.array(known + [0.0] * (turns - len(known)))

    def fold(self, episode: Episode) -> None:
        """Take the returns of an episode's turns into the means of their indices."""
        kept = self._settings.memory
        if not kept or not episode.turns:
            return
        found = returns([turn.reward or 0.0 for turn in episode.turns], 0.0, self._settings.discount)
        new = max(0, len(found) - len(self._sums))
        self._sums += [0.0] * new
        self._counts += [0.0] * new
        for index, value in enumerate(found.tolist()):
            self._sums[index] = kept * self._sums[index] + value
            self._counts[index] = kept * self._counts[index] + 1.0

    def state_dict(self) -> dict[str, list[float]]:
        """Means by turn index."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go back to a saved state."""
        self._sums, self._counts = list(state["sums"]), list(state["counts"])


def _of_tokens(episode: Episode, advantages: FloatArray) -> list[FloatArray]:
    """[T] of each segment: the advantage of the turn that a token belongs to, 0 outside of turns."""
    result = [np.zeros(len(segment)) for segment in episode.segments]
    for turn, advantage in zip(episode.turns, advantages, strict=False):
        result[turn.segment][turn.start : turn.end] = advantage
    return result
