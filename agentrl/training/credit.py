"""What each episode of a batch gets credit for, and what its prompt is worth afterwards.

Two moments of one step, in this order: `assign` reads all baselines of a batch and makes advantages,
`fold` puts its rewards into the value tracker. So no baseline contains a reward it is subtracted from.
Between them lies the learner's step, of which this module knows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.advantage import Advantages, CreditBatch, Estimator
from agentrl.algorithms.value_tracker import Fold
from agentrl.config import registry
from agentrl.config.settings import EstimatorSettings, Settings
from agentrl.episode import Episode, replace_reward
from agentrl.errors import AgentRLError, ConfigError, PartError
from agentrl.training.prompts import PromptPool


def make_estimator(settings: EstimatorSettings) -> Estimator:
    """The estimator that the settings name.

    Raises:
        ConfigError: there is none, or the group size does not fit it.
    """
    declared = registry.declared("estimator", settings.kind)
    if "groups" in declared.requires and settings.group_size < 2:
        raise ConfigError(
            f"estimator.kind = {settings.kind!r} compares the episodes of a group and needs "
            f"estimator.group_size of at least 2, got {settings.group_size} (8 is usual)"
        )
    if "groups" not in declared.requires and settings.group_size != 1:
        raise ConfigError(
            f"estimator.kind = {settings.kind!r} takes one episode per prompt and needs "
            f"estimator.group_size = 1, got {settings.group_size}"
        )
    return registry.make("estimator", settings.kind, settings.own)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Baselines and advantages of one batch of B episodes."""

    trained: list[Episode]
    """The episodes that are learned from."""
    advantages: Advantages
    """Of the trained episodes."""
    baselines: NDArray[np.float64]
    """[B]"""
    counts: NDArray[np.float64]
    """[B] effective number of scores that each baseline rests on."""
    scores: NDArray[np.float64]
    """[B]"""
    learned: list[int]
    """Places in the batch of the trained episodes."""
    masked: dict[str, str]
    """Episodes that are folded but not learned from, with the reason."""

    def flat(self) -> NDArray[np.float64]:
        """All advantages: one per episode, or one per token."""
        if isinstance(self.advantages, np.ndarray):
            return self.advantages
        return np.concatenate([np.asarray(part) for episode in self.advantages for part in episode])

    def of_tokens(self) -> list[list[NDArray[np.float32]]] | None:
        """Of each trained episode and segment [T], where tokens have advantages of their own."""
        if isinstance(self.advantages, np.ndarray):
            return None
        return [[np.asarray(part, dtype=np.float32) for part in episode] for episode in self.advantages]

    def of_episodes(self) -> NDArray[np.float64]:
        """[B] the advantage of each episode, the mean over its sampled tokens, or nan where it is masked."""
        values = np.full(len(self.baselines), np.nan)
        given = self.of_tokens()
        values[self.learned] = (
            self.advantages
            if given is None
            else [_sampled_mean(one, parts) for one, parts in zip(self.trained, given, strict=True)]
        )
        return values


def _sampled_mean(episode: Episode, advantages: Sequence[NDArray[np.float32]]) -> float:
    sampled = [
        values[np.frombuffer(segment.loss_mask, dtype=np.bool_)]
        for segment, values in zip(episode.segments, advantages, strict=True)
    ]
    values = np.concatenate([*sampled, np.zeros(0, dtype=np.float32)])
    return float(values.mean()) if len(values) else 0.0


class Credit:
    """Values, advantages and folds of one run.

    Args:
        settings: of the run.
        pool: prompts, tracker and samplers.
        estimator: rewards to advantages.
    """

    def __init__(self, settings: Settings, pool: PromptPool, estimator: Estimator) -> None:
        self._settings, self._pool, self._estimator = settings, pool, estimator
        shaper = settings.shaper
        self._shape = None if shaper.kind == "none" else registry.make("shaper", shaper.kind, shaper.own)
        self.clocks = [0.0]
        """The tracker's drift clock when each version began, by version."""
        self._frozen: dict[str, tuple[float, int]] = {}
        """Of a copy that was not folded yet: the mean score of the others, and how many they are."""

    def freeze(self, copies: Sequence[Episode]) -> None:
        """Make each episode's baseline the mean score of the others, until it is folded.

        Args:
            copies: of one prompt; one alone has the prompt's value, as if it had no siblings.
        """
        scores = {episode.episode_id: self.score(episode) for episode in copies}
        total, others = sum(scores.values()), len(scores) - 1
        if others:
            means = {key: ((total - score) / others, others) for key, score in scores.items()}
            self._frozen |= {key: mean for key, mean in means.items() if key not in self._frozen}

    def learner_options(self, baselines: NDArray[np.float64]) -> dict[str, Any]:
        """What the learner is told besides episodes and advantages.

        Args:
            baselines: [B] of the episodes that are learned from.
        """
        tracker, loss = self._settings.tracker, self._settings.loss
        options: dict[str, Any] = {"clock_tokens": tracker.clock_tokens if tracker.drift == "clock" else 0}
        if "baselines" in registry.declared("loss", loss.kind).requires:
            options["values"] = baselines
        return options

    def assign(self, batch: Sequence[Episode]) -> Assignment:
        """Baselines of all B episodes, then advantages of those that are learned from.

        Raises:
            AgentRLError: all of them were cut off, and such episodes are not learned from.
        """
        prompts = np.array([self._pool.index[episode.prompt_id] for episode in batch])
        starts = np.array([episode.start_version for episode in batch])
        baselines = self._pool.tracker.baselines(prompts, starts)
        counts = self._pool.tracker.effective_counts(prompts)
        for place, episode in enumerate(batch):
            if episode.episode_id in self._frozen:
                baselines[place], counts[place] = self._frozen[episode.episode_id]
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
        kind = self._settings.estimator.kind
        with registry.blame("estimator", kind):
            given = self._estimator(self.batch(trained, baselines[kept], counts[kept]))
            advantages = _checked(given, trained, f"the estimator {kind!r}")
        scores = np.array([self.score(episode) for episode in batch])
        return Assignment(trained, advantages, baselines, counts, scores, kept, masked)

    def score(self, episode: Episode) -> float:
        """What an episode counts for, in [0, 1]: its reward, shaped where the settings name a shaper.

        Raises:
            PartError: the shaper raised, or gave something outside the range of the reward.
        """
        if self._shape is None:
            return episode.score
        kind = self._settings.shaper.kind
        with registry.blame("shaper", kind):
            reward = float(self._shape(episode))
        low, high = episode.reward_range
        if not low <= reward <= high:
            raise PartError(
                f"the shaper {kind!r} gave episode {episode.episode_id} the reward {reward}; rewards of its "
                f"environment lie in [{low}, {high}]"
            )
        return replace_reward(episode, reward).score

    def batch(
        self,
        episodes: Sequence[Episode],
        baselines: NDArray[np.float64] | None = None,
        counts: NDArray[np.float64] | None = None,
    ) -> CreditBatch:
        """B episodes as parts see them."""
        grouped = self._settings.estimator.group_size > 1
        return CreditBatch(
            scores=np.array([self.score(episode) for episode in episodes]),
            baselines=baselines,
            counts=counts,
            groups=np.array([episode.group or 0 for episode in episodes]) if grouped else None,
            episodes=episodes,
        )

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
        folds = self.fold_values(batch, drifts)
        for start in range(0, len(batch), self._settings.estimator.group_size):
            self._pool.folded(self._pool.index[batch[start].prompt_id])
        return folds

    def fold_values(
        self, batch: Sequence[Episode], drifts: Sequence[float | None] | None = None
    ) -> list[Fold]:
        """Fold a batch into the tracker; whether its prompts can be drawn again is for others to say."""
        folds: dict[int, Fold] = {}
        for place in sorted(range(len(batch)), key=lambda place: batch[place].dispatch_index):
            folds[place] = self.fold_one(batch[place], drift=None if drifts is None else drifts[place])
        self._pool.tracker.end_batch()
        return [folds[place] for place in range(len(batch))]

    def fold_one(self, episode: Episode, *, score: float | None = None, drift: float | None = None) -> Fold:
        """Fold one episode, with its score where it is known already."""
        score = self.score(episode) if score is None else score
        fold = self.fold_score(episode.episode_id, episode.prompt_id, score, episode.start_version, drift)
        self.remember(episode, score)
        return fold

    def fold_score(
        self, episode_id: str, prompt_id: str, score: float, start_version: int, drift: float | None = None
    ) -> Fold:
        """Fold a score of an episode that began at `start_version` into the tracker."""
        self._frozen.pop(episode_id, None)
        start_clock = self.clocks[min(start_version, len(self.clocks) - 1)]
        prompt = self._pool.index[prompt_id]
        return self._pool.tracker.fold(
            prompt,
            score,
            start_clock=start_clock,
            drift=drift,
            start_version=start_version,
            weight=self._pool.weight(prompt),
        )

    def remember(self, episode: Episode, score: float) -> None:
        """Tell parts that remember of a folded episode; an estimator with the reward that it counted for."""
        counted = episode
        if self._shape is not None:
            low, high = episode.reward_range
            counted = replace_reward(episode, low + score * (high - low))
        for name, part in self._remembering():
            with registry.blame(name, getattr(self._settings, name).kind):
                part.fold(counted if name == "estimator" else episode)

    def _remembering(self) -> Iterator[tuple[str, Any]]:
        """Parts that are told of each folded episode, and have a state."""
        for name, part in (("shaper", self._shape), ("estimator", self._estimator)):
            if hasattr(part, "fold"):
                yield name, part

    def state_dict(self) -> dict[str, Any]:
        """What the parts remember of folded episodes, and baselines of copies that were not folded yet."""
        parts = {name: part.state_dict() for name, part in self._remembering()}
        return parts | {"frozen": dict(self._frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; a part that was not there then begins without memory."""
        self._frozen = {key: tuple(one) for key, one in state.get("frozen", {}).items()}
        for name, part in self._remembering():
            if name in state:
                part.load_state_dict(state[name])

    def keeps(self, unit: Sequence[Episode]) -> bool:
        """Whether a unit is learned from: something in it can be, and the estimator keeps it."""
        if not any(episode.num_trainable for episode in unit):
            return False
        keep = getattr(self._estimator, "keep", None)
        return keep is None or bool(np.all(keep(self.batch(unit))))


def _checked(advantages: Any, episodes: Sequence[Episode], where: str) -> Advantages:
    """Advantages of B episodes, or of each episode and segment [T]; refused where they are neither."""
    if len(advantages) != len(episodes):
        raise PartError(f"{where} gave {len(advantages)} advantages for {len(episodes)} episodes")
    if not isinstance(advantages[0], list | tuple) and np.ndim(advantages[0]) == 0:
        values = np.asarray(advantages, dtype=np.float64)
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise PartError(f"{where} gave episode {episodes[at].episode_id} the advantage {values[at]}")
        return values
    for episode, parts in zip(episodes, advantages, strict=True):
        shapes, wanted = [np.shape(part) for part in parts], [(len(one),) for one in episode.segments]
        if shapes != wanted:
            raise PartError(
                f"{where} gave episode {episode.episode_id} advantages of the shapes {shapes}; its segments "
                f"have the shapes {wanted}"
            )
        if not all(np.isfinite(part).all() for part in parts):
            raise PartError(
                f"{where} gave a token of episode {episode.episode_id} an advantage that is not finite"
            )
    return advantages


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
