"""Where the dispatcher's training episodes come from and go.

A stream decides which prompt is next, keeps ledger, samplers and buffer in step with what becomes of
each episode, and lets an episode count as finished only once it is on disk. It knows nothing of the
learner, of weights, or of how episodes are played.

In a deterministic run (`in_order`) nothing may depend on who ends first. There, what becomes of
episodes is decided when all in flight have ended and no more can be started, in order of dispatch.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

from agentrl.episode import Episode
from agentrl.rollout.outage import Outages
from agentrl.rollout.token_completer import Dispatch, episode_seed
from agentrl.storage.ledger import EQUAL_REWARDS, LOST_MEMBER, TRAINING, Ledger, State
from agentrl.storage.recorder import EpisodeRecorder
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.prompts import PromptPool

logger = logging.getLogger(__name__)


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
        quarantine_after: failures in one group after which it is given up.
        in_order: what becomes of episodes does not depend on which of them ends first.
        outages: which environments are paused, because everything of them fails.
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
        in_order: bool = False,
        outages: Outages | None = None,
    ) -> None:
        self._pool, self._buffer, self._ledger, self._recorder = pool, buffer, ledger, recorder
        self._seed, self._group_size, self._total = seed, group_size, total
        self._fold = fold
        self._quarantine_after = quarantine_after
        self._in_order = in_order
        self._outages = outages or Outages(())
        self._ended: list[Episode] = []
        self.redoing = False
        """Whether draws of an earlier attempt are being redone. Nothing starts meanwhile: an episode of that
        attempt which ended before its own draw was redone would give back the draw of another."""
        self.next_index = 0
        self.next_group = 0
        self.again: deque[tuple[str, int, int | None]] = deque()
        """(key, prompt, group) of episodes to start again: pending in an earlier attempt."""
        self._members: list[tuple[int, int]] = []  # (group, prompt) still to be started
        self._group_failures: Counter[int] = Counter()
        self.failures = 0
        self.first_failure = ""
        self.last_failure = ""
        self.starving = False
        """Whether the last attempt to draw a prompt found none, and no pause is the reason."""
        self._dead_groups: set[int] = set()
        self.writing = 0
        self.sampled_tokens = 0
        self.observe: Callable[[Episode], None] = lambda episode: None
        """Told every episode that ended, before anything becomes of it."""
        self.wake: Callable[[], None] = lambda: None
        """Called when an episode left the buffer on its own, so that another may be started."""

    def next(self) -> Dispatch | None:
        """The next episode to start, None while the buffer admits none or no prompt can be drawn."""
        dispatch = self._next()
        if dispatch is None and self._ended and len(self._ended) == self._buffer.running:
            self._settle()
            dispatch = self._next()
        return dispatch

    def _next(self) -> Dispatch | None:
        learned = self._buffer.taken * self._buffer.batch
        if self._buffer.room() <= 0 or learned + self._buffer.under_way >= self._total:
            return None
        if self.redoing:
            return None
        for again in self.again:
            if self._admits(again[1]):
                self.again.remove(again)
                return self._dispatch(*again)
        member = self._next_member()
        if member is None:
            prompt = self._pool.draw(self._outages.admits)
            self.starving = prompt is None and not self._outages.paused
            if prompt is None:
                return None
            if self._group_size == 1:
                return self._new(prompt, None)
            member = (self.next_group, prompt)
            self._members += [member] * self._group_size
            self.next_group += 1
        self._members.remove(member)
        return self._new(member[1], member[0])

    def _admits(self, prompt: int) -> bool:
        return self._outages.admits(self._pool.task(prompt).name)

    def _next_member(self) -> tuple[int, int] | None:
        """Of the oldest group that is not complete and not paused."""
        return min((member for member in self._members if self._admits(member[1])), default=None)

    def _new(self, prompt: int, group: int | None) -> Dispatch:
        key = f"{TRAINING}{self.next_index}"
        self.next_index += 1
        return self._dispatch(key, prompt, group)

    def _dispatch(self, key: str, prompt: int, group: int | None) -> Dispatch:
        version = self._buffer.version
        index = int(key.removeprefix(TRAINING))
        self._ledger.dispatched(key, self._pool.prompt_ids[prompt], version, group)
        self._buffer.started(key, version)
        self._outages.started(self._pool.task(prompt).name, key)
        return Dispatch(
            episode_id=key,
            dispatch_index=index,
            prompt_id=self._pool.prompt_ids[prompt],
            start_version=version,
            environment=self._pool.task(prompt).name,
            seed=episode_seed(self._seed, TRAINING, index),
            group=group,
        )

    def resume_groups(self) -> None:
        """Go on with the groups of an earlier attempt: count their failures, start what is missing."""
        states: dict[int, Counter[State]] = {}
        prompts: dict[int, int] = {}
        for entry in self._ledger.entries.values():
            if entry.group is not None:
                states.setdefault(entry.group, Counter())[entry.state] += not entry.excused
                prompts[entry.group] = self._pool.index[entry.prompt_id]
        self.next_group = 1 + max(states, default=-1)
        for group, count in states.items():
            self._group_failures[group] = count[State.FAILED]
            if count[State.FAILED] >= self._quarantine_after:
                self._dead_groups.add(group)
            elif not (count[State.LEARNED] or count[State.DISCARDED] or count[State.ABANDONED]):
                missing = self._group_size - count[State.PENDING] - count[State.FINISHED]
                self._members += [(group, prompts[group])] * missing

    def finished(self, episode: Episode) -> None:
        """Write it; it counts once it is on disk."""
        self.writing += 1
        self._recorder.record(episode, lambda: self._written(episode))

    def _written(self, episode: Episode) -> None:
        self.writing -= 1
        self._end(episode)

    def failed(self, episode: Episode) -> None:
        """Machinery broke: the prompt goes back and rests."""
        assert episode.failure is not None
        failure = episode.failure
        self.failures += 1
        self.last_failure = f"{failure.boundary}: {failure.error}: {failure.message}"
        self.first_failure = self.first_failure or self.last_failure
        logger.warning("episode %s failed: %s", episode.episode_id, self.last_failure)
        self._recorder.record(episode, lambda: None)
        self._end(episode)

    def _end(self, episode: Episode) -> None:
        self._ended.append(episode)
        if self._in_order:
            self.wake()  # `next` settles it when all have ended
        else:
            self._settle()

    def _settle(self) -> None:
        """Decide what becomes of the episodes that ended."""
        ended = sorted(self._ended, key=lambda episode: episode.dispatch_index)
        self._ended = []
        with self._ledger.together():
            for episode in ended:
                if episode.failure is None:
                    self._accept(episode)
                else:
                    self._give_back(episode, f"{episode.failure.boundary}: {episode.failure.error}")

    def _accept(self, episode: Episode) -> None:
        self.sampled_tokens += episode.num_sampled
        self._outages.succeeded(episode)
        self._ledger.finished(episode.episode_id)
        self.observe(episode)
        if episode.group in self._dead_groups:
            self._buffer.dropped(episode.episode_id)
            self.lose([episode])
            return
        rejected = self._buffer.put(episode)
        if rejected is not None:
            self.discard(rejected)

    def discard(self, unit: Sequence[Episode]) -> None:
        """A whole group with nothing to learn from: folded, and its prompt can be drawn again."""
        self._ledger.discarded([episode.episode_id for episode in unit], EQUAL_REWARDS)
        for episode in unit:
            self._fold(episode)
        self._pool.folded(self._pool.index[unit[0].prompt_id])
        self.wake()

    def _give_back(self, episode: Episode, reason: str) -> None:
        counts = self._outages.failed(episode)
        self._ledger.failed(episode.episode_id, reason, excused=not counts)
        self._buffer.dropped(episode.episode_id)
        prompt = self._pool.index[episode.prompt_id]
        if episode.group is not None:
            self._member_failed(prompt, episode.group, counts=counts)
        elif counts:
            self._pool.failed(prompt)
        else:
            self._pool.returned(prompt)

    def _member_failed(self, prompt: int, group: int, *, counts: bool) -> None:
        self._group_failures[group] += counts
        if self._group_failures[group] < self._quarantine_after:
            self._members.append((group, prompt))
            return
        # The group can never be complete: what it has goes, and the prompt rests.
        self._members = [member for member in self._members if member[0] != group]
        self._dead_groups.add(group)
        self.lose(self._buffer.drop_group(group))
        if counts and self._group_failures[group] == self._quarantine_after:
            self._pool.failed(prompt)

    def is_dead(self, group: int | None) -> bool:
        """Whether a group can never be complete."""
        return group in self._dead_groups

    def lose(self, members: Sequence[Episode]) -> None:
        """Graded members of a group that can never be complete: folded, not learned from."""
        self._ledger.discarded([episode.episode_id for episode in members], LOST_MEMBER)
        for episode in members:
            self._fold(episode)

    def cancelled(self, dispatch: Dispatch) -> None:
        """It stays pending in the ledger: a resumed run starts it again."""
        self._buffer.dropped(dispatch.episode_id)

    def abandon(self, reason: str) -> None:
        """The run is over: whatever is left is not learned from, and its prompts can be drawn again."""
        left = [entry for entry in self._ledger.entries.values() if not entry.state.terminal]
        self._ledger.abandoned([entry.key for entry in left], reason)
        units = {entry.group if entry.group is not None else entry.key: entry for entry in left}
        for entry in units.values():
            if entry.key.startswith(TRAINING) and not self.is_dead(entry.group):
                self._pool.returned(self._pool.index[entry.prompt_id])
