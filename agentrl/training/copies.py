"""Fresh copies: a prompt never seen is played several times, and its copies are each other's baseline.

The value tracker knows nothing of such a prompt. So the copies of a set wait until all of them have ended or
failed; then each has the mean score of the others as its baseline, and goes its own way as any episode does.
Nothing else waits: slots are filled and batches are taken meanwhile. A mean of those that ended first would
do without waiting, but how long an episode takes may tell how it went: such a baseline is biased.
Afterwards the prompt is played once at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentrl.episode import Episode
from agentrl.storage.ledger import Entry, State
from agentrl.training.groups import Members, Unit
from agentrl.training.prompts import PromptPool


class FreshCopies(Members):
    """The sets of copies under way; a set has a number, as a group has.

    Args:
        count: copies of a prompt that was never seen.
        pool: says whether a prompt was seen, and counts the copies.
        freeze: told the members of a set that ended: their baselines are made then.
    """

    size = 1
    """Episodes of a unit: each is learned from on its own."""

    def __init__(self, count: int, pool: PromptPool, freeze: Callable[[Sequence[Episode]], object]) -> None:
        super().__init__()
        self._count, self._pool, self._freeze = count, pool, freeze
        self._counts: dict[int, int] = {}
        self._open: Counter[int] = Counter()  # copies of a set that neither ended nor failed

    def open(self, prompt: int, room: int) -> int | None:
        """A prompt was drawn: the number of its set, whose first copy is started by the caller.

        Args:
            prompt: the prompt.
            room: episodes that may be started now; all copies must be, for a batch cannot wait for others.
        """
        count = min(self._count, room)
        if count < 2 or not self._pool.is_fresh(prompt):
            return None
        number = self._next
        self._next += 1
        self._counts[number] = self._open[number] = count
        self._to_start += [(number, prompt)] * (count - 1)
        return number

    def count_of(self, number: int) -> int:
        """Copies of a set under way."""
        return self._counts[number]

    def add(self, episode: Episode) -> list[Unit]:
        """An episode finished; the units that wait for nothing now."""
        if episode.group is None:
            return [(episode,)]
        self._finished.setdefault(episode.group, []).append(episode)
        return self._ended(episode.group)

    def failed(self, number: int) -> list[Unit]:
        """A copy failed and is not replaced; the units that wait for nothing now."""
        return self._ended(number)

    def _ended(self, number: int) -> list[Unit]:
        self._open[number] -= 1
        if self._open[number] > 0:
            return []
        del self._open[number], self._counts[number]
        members = sorted(self._finished.pop(number, []), key=lambda member: member.dispatch_index)
        self._freeze(members)
        return [(member,) for member in members]

    def restore(self, entries: Iterable[Entry], prompts: Mapping[str, int]) -> None:
        """Go on with the sets of an earlier attempt: start the copies that it had not started."""
        sets: dict[int, list[Entry]] = {}
        for entry in entries:
            if entry.group is not None:
                sets.setdefault(entry.group, []).append(entry)
        self._next = 1 + max(sets, default=-1)
        for number, members in sets.items():
            waits = sum(member.state in (State.PENDING, State.FINISHED) for member in members)
            missing = members[0].copies - len(members)
            if waits or missing:
                self._counts[number], self._open[number] = members[0].copies, waits + missing
                self._to_start += [(number, prompts[members[0].prompt_id])] * missing
