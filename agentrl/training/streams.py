"""Where the dispatcher's training episodes come from and go.

A stream decides which prompt is next, keeps ledger, samplers and buffer in step with what becomes of
each episode, and lets an episode count as finished only once it is on disk. It knows nothing of the
learner, of weights, or of how episodes are played.

In a deterministic run (`in_order`) nothing may depend on who ends first. There, what becomes of
episodes is decided when all in flight have ended and no more can be started, in order of dispatch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from agentrl.episode import Episode
from agentrl.rollout.outage import Outages
from agentrl.rollout.token_completer import Dispatch, episode_seed
from agentrl.storage.ledger import (
    EQUAL_REWARDS,
    LOST_MEMBER,
    NOTHING_SAMPLED,
    TOO_OLD,
    TRAINING,
    Done,
    Ledger,
    State,
)
from agentrl.storage.recorder import EpisodeRecorder
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.copies import FreshCopies
from agentrl.training.credit import Credit
from agentrl.training.groups import Groups, Unit
from agentrl.training.progress import Progress
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
        progress: tokens are counted in it.
        groups: of several episodes of each drawn prompt; None where a prompt is played once, as by SPO.
        copies: of prompts that were never seen; None where these are played once too.
        total: episodes the whole run learns from.
        credit: folds an episode that leaves without being learned from.
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
        total: int,
        credit: Credit,
        progress: Progress,
        groups: Groups | None = None,
        copies: FreshCopies | None = None,
        in_order: bool = False,
        outages: Outages | None = None,
    ) -> None:
        self._pool, self._buffer, self._ledger, self._recorder = pool, buffer, ledger, recorder
        self._seed, self._total = seed, total
        self._credit, self._progress = credit, progress
        self._groups, self._copies = groups, copies
        self._in_order = in_order
        self._outages = outages or Outages(())
        self._ended: list[Episode] = []
        self.next_index = 0
        self.again: deque[tuple[str, int, int | None]] = deque()
        """(key, prompt, group) of episodes to start again: pending in an earlier attempt."""
        self.failures = 0
        self.first_failure = ""
        self.last_failure = ""
        self.starving = False
        """Whether the last attempt to draw a prompt found none, and no pause is the reason."""
        self.writing = 0
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
        if self._room() <= 0:
            return None
        for again in self.again:
            if self._admits(again[1]):
                self.again.remove(again)
                return self._dispatch(*again)
        together = self._groups or self._copies
        member = None if together is None else together.next_member(self._admits)
        if member is not None:
            return self._another(*member)
        prompt = self._pool.draw(self._outages.admits)
        self.starving = prompt is None and not self._outages.paused
        if prompt is None:
            return None
        return self._new(prompt, self._open(prompt), done="claim")

    def _open(self, prompt: int) -> int | None:
        """The number of the group or set of copies that a drawn prompt begins, if it begins one."""
        if self._groups is not None:
            return self._groups.open(prompt)
        if self._copies is None:
            return None
        return self._copies.open(prompt, self._room())

    def _room(self) -> int:
        """Episodes that may be started now: the buffer admits them, and a step will use them."""
        learned = self._buffer.taken * self._buffer.batch
        return min(self._buffer.room(), self._total - learned - self._buffer.under_way)

    def _another(self, number: int, prompt: int) -> Dispatch:
        """Another episode of a group, or of a set of copies: those come back to the pool one by one."""
        if self._copies is None:
            return self._new(prompt, number)
        self._pool.copy(prompt)
        return self._new(prompt, number, done="copy")

    def _admits(self, prompt: int) -> bool:
        return self._outages.admits(self._pool.task(prompt).name)

    def _new(self, prompt: int, group: int | None, *, done: Done = "") -> Dispatch:
        key = f"{TRAINING}{self.next_index}"
        self.next_index += 1
        return self._dispatch(key, prompt, group, done=done)

    def _dispatch(self, key: str, prompt: int, group: int | None, *, done: Done = "") -> Dispatch:
        version = self._buffer.published
        index = int(key.removeprefix(TRAINING))
        copies = 0 if self._copies is None or group is None else self._copies.count_of(group)
        self._ledger.dispatched(key, self._pool.prompt_ids[prompt], version, group, copies=copies, done=done)
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

    def start_again(self) -> None:
        """After a resume: go on with the episodes that were pending, and with what is missing of groups."""
        for entry in self._ledger.in_state(State.PENDING, TRAINING):
            self.again.append((entry.key, self._pool.index[entry.prompt_id], entry.group))
        keys = (key for key in self._ledger.entries if key.startswith(TRAINING))
        self.next_index = 1 + max((int(key.removeprefix(TRAINING)) for key in keys), default=-1)
        together = self._groups or self._copies
        if together is not None:
            together.restore(self._ledger.entries.values(), self._pool.index)

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
            self.expire()

    def _accept(self, episode: Episode) -> None:
        self._progress.tokens += episode.num_sampled
        self._outages.succeeded(episode)
        self._ledger.finished(episode.episode_id, episode.num_sampled)
        self.observe(episode)
        if self._gave_up(episode.group):
            self._buffer.dropped(episode.episode_id)
            self.lose([episode])
            return
        self._reject(self._buffer.put(episode))

    def _reject(self, units: Sequence[Unit]) -> None:
        for unit in units:
            if any(episode.num_trainable for episode in unit):
                self._discard(unit, EQUAL_REWARDS, done="folded")
            else:
                # It would come back at once, for ever: its prompt rests, as after a failure.
                self.last_failure = f"env: {unit[-1].environment}: {NOTHING_SAMPLED}"
                self._discard(unit, NOTHING_SAMPLED, done="failed")
            self.wake()

    def expire(self) -> None:
        """Fold what is too old to be learned from; also called when the learner has another version."""
        for unit in self._buffer.expired():
            self._discard(unit, TOO_OLD, done="folded")
            self.wake()

    def _gave_up(self, group: int | None) -> bool:
        return self._groups is not None and self._groups.gave_up(group)

    def lose(self, members: Sequence[Episode]) -> None:
        """Graded members of a group that can never be complete: folded, not learned from."""
        self._discard(members, LOST_MEMBER)

    def _discard(self, episodes: Sequence[Episode], reason: str, *, done: Done = "") -> None:
        scores = {episode.episode_id: self._credit.score(episode) for episode in episodes}
        self._ledger.discarded(scores, reason, done=done)
        for episode in episodes:
            self._credit.fold_one(episode, score=scores[episode.episode_id])
        if done:
            self._pool.do(done, episodes[0].prompt_id)

    def _give_back(self, episode: Episode, reason: str) -> None:
        counts = self._outages.failed(episode)
        done, given_up = self._after_failure(episode, counts=counts)
        self._ledger.failed(episode.episode_id, reason, excused=not counts, done=done)
        self._buffer.dropped(episode.episode_id)
        if done:
            self._pool.do(done, episode.prompt_id)
        if self._copies is not None and episode.group is not None:
            self._reject(self._buffer.release(self._copies.failed(episode.group)))
        if given_up is not None and self._groups is not None:
            members = self._groups.drop(given_up)
            self._buffer.left(members)
            self.lose(members)

    def _after_failure(self, episode: Episode, *, counts: bool) -> tuple[Done, int | None]:
        """What is done to the prompt of an episode that failed, and the group that is given up with it."""
        if self._groups is None or episode.group is None:
            return ("failed" if counts else "returned"), None
        prompt = self._pool.index[episode.prompt_id]
        given_up = self._groups.failed(episode.group, prompt, counts=counts)
        return ("failed", episode.group) if given_up else ("", None)

    def cancelled(self, dispatch: Dispatch) -> None:
        """It stays pending in the ledger: a resumed run starts it again."""
        self._buffer.dropped(dispatch.episode_id)

    def abandon(self, reason: str) -> None:
        """The run is over: whatever is left is not learned from, and its prompts can be drawn again."""
        left = [entry for entry in self._ledger.entries.values() if not entry.state.terminal]
        drawn = {
            entry.key if entry.group is None or self._groups is None else entry.group: entry
            for entry in left
            if entry.key.startswith(TRAINING) and not self._gave_up(entry.group)
        }
        returned = {entry.key: self._pool.index[entry.prompt_id] for entry in drawn.values()}
        self._ledger.abandoned([entry.key for entry in left], reason, returned=returned)
        for prompt in returned.values():
            self._pool.returned(prompt)
