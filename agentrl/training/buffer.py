"""Holds finished episodes until B of them make a batch; decides how many may be under way.

Three rules of staleness, with s the allowed staleness, B the batch and v the learner's version:

`correct` (soft): an episode is admitted while accepted + running < (s + p + 1) B, with p the version that
engines have: v, or up to `learner.publish_every` - 1 less. A batch is the B episodes that were dispatched
first among the finished ones. A slow episode may exceed s; it is learned from with importance weights, and
the excess is counted.

`wait` (hard): an episode whose first token has version f is due by d = f + s. For each d, the episodes
under way that are due by d are at most (d - v + 1) B, at admission and after each take; batches are
taken earliest deadline first (once the batch of v is taken, v + 1 stands for v). A batch waits for
running episodes exactly when taking without them would break the bound, so no finished episode ever
exceeds s. No state is a deadlock: all running episodes end, and with all of them finished the B
earliest always satisfy the bound.

`drop` (hard): as `correct`, but who is older than s leaves and is not learned from (`expired`). Nobody waits
for a slow episode, and whoever is slow for a reason is learned from less often: a bias that `wait` has not.

What flows is a *unit*: one episode, or one whole group where the run has `Groups`. The buffer knows
nothing of why episodes are late, of rewards or of tokens.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from agentrl.episode import Episode
from agentrl.errors import ConfigError, LedgerError
from agentrl.training.copies import FreshCopies
from agentrl.training.groups import Groups, Unit


class EpisodeBuffer:
    """Finished episodes and the count of running ones.

    Args:
        batch: B, episodes of one learner step.
        staleness: s, in versions.
        stale_policy: `correct`, `wait` or `drop`.
        groups: episodes that wait for each other: groups, or fresh copies; None for SPO, which has no such.
        keep: whether a unit is learned from; one that is not leaves at once (GRPO's dynamic sampling).
    """

    def __init__(
        self,
        *,
        batch: int,
        staleness: int,
        stale_policy: Literal["correct", "wait", "drop"] = "correct",
        groups: Groups | FreshCopies | None = None,
        keep: Callable[[Unit], bool] | None = None,
    ) -> None:
        if batch < 1 or staleness < 0:
            raise ConfigError(
                f"stream.batch must be >= 1 and stream.staleness >= 0, got {batch}, {staleness}"
            )
        if groups is not None and batch % groups.size:
            raise ConfigError(
                f"stream.batch = {batch} is not a multiple of estimator.group_size = {groups.size}"
            )
        self.batch = batch
        self.staleness = staleness
        self.stale_policy = stale_policy
        self.version = self.published = 0
        self._groups = groups
        self._unit = 1 if groups is None else groups.size
        self._keep = keep
        self._accepted = 0
        self._next = 0  # version whose batch was not taken yet
        self._ready: list[Unit] = []
        self._running: dict[str, int] = {}
        self._changed = asyncio.Event()

    @property
    def running(self) -> int:
        """Episodes in flight."""
        return len(self._running)

    @property
    def size(self) -> int:
        """Finished episodes that wait for their batch."""
        return sum(map(len, self._ready)) + sum(map(len, self._incomplete))

    @property
    def _incomplete(self) -> Iterable[list[Episode]]:
        return () if self._groups is None else self._groups.incomplete

    @property
    def taken(self) -> int:
        """Batches taken so far, the one being learned from included."""
        return self._next

    @property
    def under_way(self) -> int:
        """Running and finished episodes that were not taken yet."""
        return self.running + self.size

    def episodes(self) -> list[Episode]:
        """The finished episodes, for a checkpoint, in order of dispatch."""
        waiting = [episode for unit in self._ready for episode in unit]
        waiting += [episode for members in self._incomplete for episode in members]
        return sorted(waiting, key=lambda episode: episode.dispatch_index)

    def room(self) -> int:
        """Episodes that may be dispatched now."""
        if self.stale_policy == "wait":
            # A new episode is due last of all, so only the count of all of them binds.
            steps_left = self.published + self.staleness - self._next + 1
            return steps_left * self.batch - self.under_way
        return (self.staleness + self.published + 1) * self.batch - self._accepted - self.running

    def started(self, episode_id: str, start_version: int) -> None:
        """An episode is in flight from now on."""
        self._running[episode_id] = start_version

    def dropped(self, episode_id: str) -> None:
        """An episode in flight failed or was cancelled; its place is free."""
        self._running.pop(episode_id, None)
        self._changed.set()

    def put(self, episode: Episode) -> list[Unit]:
        """An episode finished; returns units that are not kept (their episodes are out).

        Raises:
            LedgerError: the episode was not in flight.
        """
        if self._running.pop(episode.episode_id, None) is None:
            raise LedgerError(f"episode {episode.episode_id} was finished twice or never started")
        self._accepted += 1
        return self._place(episode)

    def left(self, episodes: Sequence[Episode]) -> None:
        """Finished members of a group left it: it can never be complete."""
        self._accepted -= len(episodes)
        self._changed.set()

    def restore(self, episodes: Sequence[Episode], version: int) -> None:
        """Put finished episodes of an earlier attempt back, which was at `version`."""
        self.version = self.published = version
        for episode in episodes:
            self._place(episode, kept=True)  # what is not kept left at once, in the earlier attempt
        self._next = self.version
        # Every batch up to the version was accepted once; so is what is back in the buffer.
        self._accepted = self.version * self.batch + self.size

    def _place(self, episode: Episode, *, kept: bool = False) -> list[Unit]:
        return self.release([(episode,)] if self._groups is None else self._groups.add(episode), kept=kept)

    def release(self, units: Sequence[Unit], *, kept: bool = False) -> list[Unit]:
        """Units wait for nothing but their batch now; returns those that are not kept."""
        rejected = [] if kept or self._keep is None else [unit for unit in units if not self._keep(unit)]
        self._accepted -= sum(map(len, rejected))
        self._ready += [unit for unit in units if unit not in rejected]
        self._changed.set()
        return rejected

    def expired(self) -> list[Unit]:
        """Units that are too old to be learned from, under `drop`; they are out."""
        if self.stale_policy != "drop":
            return []
        old = [unit for unit in self._ready if self._deadline(unit) < self.version]
        self._ready = [unit for unit in self._ready if self._deadline(unit) >= self.version]
        self._accepted -= sum(map(len, old))
        return old

    def advance(self, version: int, *, published: bool = True) -> None:
        """The learner is at `version` now, and so are the engines where it was published."""
        self.version = self._next = version
        if published:
            self.published = version
        self._changed.set()

    def _deadline(self, unit: Unit) -> int:
        return min(episode.first_version for episode in unit) + self.staleness

    def _select(self) -> list[Unit] | None:
        count = self.batch // self._unit
        if len(self._ready) < count:
            return None
        if self.stale_policy == "wait":
            self._ready.sort(key=lambda unit: (self._deadline(unit), unit[0].dispatch_index))
        else:
            self._ready.sort(key=lambda unit: unit[0].dispatch_index)
        if self.stale_policy == "wait" and not self._bound_after(self._ready[count:]):
            return None
        return self._ready[:count]

    def _bound_after(self, rest: Sequence[Unit]) -> bool:
        """Whether the hard bound holds at the next version when `rest` and all running episodes remain."""
        due: Counter[int] = Counter()
        for version in self._running.values():
            due[version + self.staleness] += 1
        for members in self._incomplete:
            due[min(member.first_version for member in members) + self.staleness] += len(members)
        for unit in rest:
            due[self._deadline(unit)] += len(unit)
        total = 0
        for deadline in sorted(due):
            total += due[deadline]
            if total > (deadline - self.version) * self.batch:
                return False
        return True

    def take_now(self) -> tuple[Episode, ...] | None:
        """The next batch if there is one."""
        units = self._select()
        if units is None:
            return None
        del self._ready[: len(units)]
        self._next += 1
        return tuple(episode for unit in units for episode in unit)

    async def take(self) -> tuple[Episode, ...]:
        """Wait for the next batch of B episodes; the caller limits the wait."""
        while (batch := self.take_now()) is None:
            self._changed.clear()
            await self._changed.wait()
        return batch
