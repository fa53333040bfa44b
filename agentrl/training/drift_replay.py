"""Drift by replay: how far the policy moved on a prompt's previous episode since its step.

The newest learned episode of each prompt is kept with the log-probabilities the learner gave it
right after its step. At the prompt's next visit, after that visit's step, it is scored again; the
drift is the mean |difference| over its trainable tokens, in nats a token. Costs two forward passes
over each batch and one episode of memory per prompt. The learner is compared with the learner, never
with the engine. Knows nothing of how the drift is used.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agentrl.episode import Episode
from agentrl.training.learner_thread import AsyncLearner


class DriftReplay:
    """The previous episode of each prompt, with the learner's log-probabilities after its step."""

    def __init__(self, learner: AsyncLearner) -> None:
        self._learner = learner
        self._previous: dict[str, Episode] = {}

    async def after_step(self, batch: Sequence[Episode]) -> list[float | None]:
        """Drift of each episode's prompt since its previous visit; None at a first visit.

        Of several episodes of one prompt the one dispatched first, which is folded first, has the drift;
        between it and the others the policy did not move. Keeps the episodes of the batch as the
        previous ones of their prompts.
        """
        first: dict[str, Episode] = {}
        for episode in sorted(batch, key=lambda episode: episode.dispatch_index):
            first.setdefault(episode.prompt_id, episode)
        earlier = {name: self._previous[name] for name in first if name in self._previous}
        scores = await self._learner.score(list(earlier.values())) if earlier else []
        moved = {
            name: mean_difference(old, now) for (name, old), now in zip(earlier.items(), scores, strict=True)
        }
        drifts = [
            moved.get(episode.prompt_id) if episode is first[episode.prompt_id] else 0.0 for episode in batch
        ]
        for episode, now in zip(batch, await self._learner.score(batch), strict=True):
            self._previous[episode.prompt_id] = with_logprobs(episode, now)
        return drifts

    def episodes(self) -> list[Episode]:
        """What a checkpoint keeps."""
        return list(self._previous.values())

    def restore(self, episodes: Sequence[Episode]) -> None:
        """What a checkpoint kept."""
        self._previous = {episode.prompt_id: episode for episode in episodes}


def with_logprobs(episode: Episode, logprobs: Sequence[NDArray[np.float32]]) -> Episode:
    """The episode with other log-probabilities [T] for its sampled tokens, segment by segment."""
    segments = tuple(
        replace(segment, logprobs=array("f", np.where(_sampled(segment.loss_mask), now, 0.0)))
        for segment, now in zip(episode.segments, logprobs, strict=True)
    )
    return replace(episode, segments=segments)


def mean_difference(episode: Episode, logprobs: Sequence[NDArray[np.float32]]) -> float:
    """Mean |difference| from the episode's own log-probabilities over its trainable tokens, nats a token."""
    total, count = 0.0, 0
    for segment, now in zip(episode.segments, logprobs, strict=True):
        if segment.trainable:
            sampled = _sampled(segment.loss_mask)
            before = np.frombuffer(segment.logprobs, dtype=np.float32)
            total += float(np.abs(np.asarray(now)[sampled] - before[sampled]).sum())
            count += int(sampled.sum())
    return total / count if count else 0.0


def _sampled(mask: bytes) -> NDArray[np.bool_]:
    return np.frombuffer(mask, dtype=np.uint8).astype(np.bool_)
