"""Where the dispatcher's training episodes come from and go.

A stream decides which prompt is next, keeps ledger, samplers and buffer in step with what becomes of
each episode, and lets an episode count as finished only once it is on disk. It knows nothing of the
learner, of weights, or of how episodes are played.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

from agentrl.buffer import EpisodeBuffer
from agentrl.episode import Episode
from agentrl.ledger import Entry, Ledger
from agentrl.prompts import PromptPool
from agentrl.recorder import EpisodeRecorder
from agentrl.rollout import Dispatch, episode_seed

logger = logging.getLogger(__name__)

TRAINING = "t"
"""First letter of the ledger keys of training episodes."""


class TrainingStream:
    """Episodes to learn from, drawn by the samplers, admitted by the buffer.

    Args:
        pool: prompts and samplers.
        buffer: takes finished episodes; says how many may be under way.
        ledger: what became of every episode.
        recorder: writes finished episodes.
        seed: the run's; with the index it makes an episode's own random stream.
        group_size: episodes per drawn prompt (GRPO reference; else 1).
        total: episodes the whole run learns from.
        fold: folds an episode that leaves without being learned from.
    """

    def __init__(
        self,
        *,
        pool: PromptPool,
        buffer: EpisodeBuffer,
        ledger: Ledger,
        recorder: EpisodeRecorder,
        seed: int,
        group_size: int,
        total: int,
        fold: Callable[[Episode], object],
        quarantine_after: int = 3,
    ) -> None:
        self._pool, self._buffer, self._ledger, self._recorder = pool, buffer, ledger, recorder
        self._seed, self._group_size, self._total = seed, group_size, total
        self._fold = fold
        self._quarantine_after = quarantine_after
        self.next_index = 0
        self.next_group = 0
        self.again: deque[tuple[str, int, int | None]] = deque()
        """(key, prompt, group) of episodes to start again: pending in an earlier attempt."""
        self._members: deque[tuple[int, int]] = deque()
        self._group_failures: Counter[int] = Counter()
        self.failures = 0
        self.last_failure = ""
        self.starving = False
        """Whether the last attempt to draw a prompt found none."""
        self._dead_groups: set[int] = set()
        self.writing = 0
        self.sampled_tokens = 0
        self.observe: Callable[[Episode], None] = lambda episode: None
        """Told every episode that ended, before anything becomes of it."""
        self.wake: Callable[[], None] = lambda: None
        """Called when an episode left the buffer on its own, so that another may be started."""

    def next(self) -> Dispatch | None:
        """The next episode to start, None while the buffer admits none or no prompt can be drawn."""
        learned = self._buffer.taken * self._buffer.batch
        if self._buffer.room() <= 0 or learned + self._buffer.under_way >= self._total:
            return None
        if self.again:
            key, prompt, group = self.again.popleft()
            return self._dispatch(key, prompt, group)
        if not self._members:
            prompt = self._pool.draw()
            self.starving = prompt is None
            if prompt is None:
                return None
            if self._group_size == 1:
                return self._new(prompt, None)
            self._members.extend([(prompt, self.next_group)] * self._group_size)
            self.next_group += 1
        return self._new(*self._members.popleft())

    def _new(self, prompt: int, group: int | None) -> Dispatch:
        key = f"{TRAINING}{self.next_index}"
        self.next_index += 1
        return self._dispatch(key, prompt, group)

    def _dispatch(self, key: str, prompt: int, group: int | None) -> Dispatch:
        version = self._buffer.version
        index = int(key.removeprefix(TRAINING))
        self._ledger.dispatched(key, self._pool.prompt_ids[prompt], version, group)
        self._buffer.started(key, version)
        return Dispatch(
            episode_id=key,
            dispatch_index=index,
            prompt_id=self._pool.prompt_ids[prompt],
            start_version=version,
            environment=self._pool.task(prompt).name,
            seed=episode_seed(self._seed, TRAINING, index),
            group=group,
        )

    def resume_groups(self, entries: Sequence[Entry]) -> None:
        """Complete the groups of an earlier attempt, from its pending and finished episodes."""
        members = Counter(entry.group for entry in entries if entry.group is not None)
        prompts = {entry.group: self._pool.index[entry.prompt_id] for entry in entries}
        for group, count in sorted(members.items()):
            self._members.extend([(prompts[group], group)] * (self._group_size - count))
        self.next_group = 1 + max(members, default=-1)

    def finished(self, episode: Episode) -> None:
        """Write it; it counts once it is on disk."""
        self.writing += 1
        self._recorder.record(episode, lambda: self._written(episode))

    def _written(self, episode: Episode) -> None:
        self.writing -= 1
        self.sampled_tokens += episode.num_sampled
        self._ledger.finished(episode.episode_id)
        self.observe(episode)
        if episode.group in self._dead_groups:
            self._buffer.dropped(episode.episode_id)
            self._lose(episode)
            return
        rejected = self._buffer.put(episode)
        if rejected is not None:
            self._discard(rejected, "all rewards of the group are equal")

    def _discard(self, unit: tuple[Episode, ...], reason: str) -> None:
        for episode in unit:
            self._ledger.discarded(episode.episode_id, reason)
            self._fold(episode)
        self._pool.folded(self._pool.index[unit[0].prompt_id])
        self.wake()

    def failed(self, episode: Episode) -> None:
        """Machinery broke: the prompt goes back and rests."""
        assert episode.failure is not None
        failure = episode.failure
        self.failures += 1
        self.last_failure = f"{failure.boundary}: {failure.error}: {failure.message}"
        logger.warning("episode %s failed: %s", episode.episode_id, self.last_failure)
        self._recorder.record(episode, lambda: None)
        self._ledger.failed(episode.episode_id, f"{failure.boundary}: {failure.error}")
        self._buffer.dropped(episode.episode_id)
        prompt = self._pool.index[episode.prompt_id]
        if episode.group is None:
            self._pool.failed(prompt)
        else:
            self._member_failed(prompt, episode.group)

    def _member_failed(self, prompt: int, group: int) -> None:
        self._group_failures[group] += 1
        if self._group_failures[group] < self._quarantine_after:
            self._members.appendleft((prompt, group))
            return
        # The group can never be complete: what it has goes, and the prompt rests.
        self._members = deque(item for item in self._members if item[1] != group)
        self._dead_groups.add(group)
        for member in self._buffer.drop_group(group):
            self._lose(member)
        if self._group_failures[group] == self._quarantine_after:
            self._pool.failed(prompt)

    def _lose(self, episode: Episode) -> None:
        """A graded member of a group that can never be complete: folded, not learned from."""
        self._ledger.discarded(episode.episode_id, "a member of the group failed")
        self._fold(episode)

    def cancelled(self, dispatch: Dispatch) -> None:
        """It stays pending in the ledger: a resumed run starts it again."""
        self._buffer.dropped(dispatch.episode_id)
