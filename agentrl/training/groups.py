"""Groups: episodes of one prompt that are compared with each other, and so wait for each other (GRPO).

Everything that a run with groups does besides stands here; SPO compares an episode with the value of its
prompt, needs none of it, and a run of it has no object of this class. A group is drawn once and has `size`
members; one that fails is replaced, and a group that lost too many can never be complete. It knows nothing of
rewards, files or samplers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from agentrl.episode import Episode
from agentrl.errors import LedgerError
from agentrl.storage.ledger import Entry, State

Unit = tuple[Episode, ...]
"""Episodes that are learned from together: one, or a whole group."""


class Members:
    """Episodes of one prompt that wait for each other: sets with a number, some members still to start."""

    def __init__(self) -> None:
        self._next = 0
        self._to_start: list[tuple[int, int]] = []  # (set, prompt)
        self._finished: dict[int, list[Episode]] = {}

    def next_member(self, admits: Callable[[int], bool]) -> tuple[int, int] | None:
        """(set, prompt) of the member to start next, of the oldest set whose prompt is admitted."""
        member = min((member for member in self._to_start if admits(member[1])), default=None)
        if member is not None:
            self._to_start.remove(member)
        return member

    @property
    def incomplete(self) -> Iterable[list[Episode]]:
        """Finished members of each set that waits for others."""
        return self._finished.values()


class Groups(Members):
    """The groups under way.

    Args:
        size: members of a group.
        given_up_after: members that fail before a group is given up.
    """

    def __init__(self, size: int, *, given_up_after: int = 3) -> None:
        super().__init__()
        self.size = size
        self._limit = given_up_after
        self._failures: Counter[int] = Counter()
        self._given_up: set[int] = set()

    def open(self, prompt: int) -> int:
        """A prompt was drawn: the number of its group, whose first member is started by the caller."""
        group = self._next
        self._next += 1
        self._to_start += [(group, prompt)] * (self.size - 1)
        return group

    def add(self, episode: Episode) -> list[Unit]:
        """A member finished; the whole group in order of dispatch where it was the last, else nothing.

        Raises:
            LedgerError: it belongs to no group.
        """
        if episode.group is None:
            raise LedgerError(f"episode {episode.episode_id} belongs to no group")
        members = self._finished.setdefault(episode.group, [])
        members.append(episode)
        if len(members) < self.size:
            return []
        return [tuple(sorted(self._finished.pop(episode.group), key=lambda member: member.dispatch_index))]

    def failed(self, group: int, prompt: int, *, counts: bool) -> bool:
        """A member failed and is replaced; returns whether the group is given up instead, by this failure."""
        self._failures[group] += counts
        if self._failures[group] < self._limit:
            self._to_start.append((group, prompt))
            return False
        self._to_start = [member for member in self._to_start if member[0] != group]
        known = group in self._given_up
        self._given_up.add(group)
        return not known

    def drop(self, group: int) -> list[Episode]:
        """The finished members of a group that was given up; they wait no longer."""
        return self._finished.pop(group, [])

    def gave_up(self, group: int | None) -> bool:
        """Whether a group can never be complete."""
        return group in self._given_up

    def restore(self, entries: Iterable[Entry], prompts: Mapping[str, int]) -> None:
        """Go on with the groups of an earlier attempt: count their failures, start what is missing."""
        states: dict[int, Counter[State]] = {}
        prompt_of: dict[int, int] = {}
        for entry in entries:
            if entry.group is not None:
                states.setdefault(entry.group, Counter())[entry.state] += not entry.excused
                prompt_of[entry.group] = prompts[entry.prompt_id]
        self._next = 1 + max(states, default=-1)
        for group, count in states.items():
            self._failures[group] = count[State.FAILED]
            if count[State.FAILED] >= self._limit:
                self._given_up.add(group)
            elif not (count[State.LEARNED] or count[State.DISCARDED] or count[State.ABANDONED]):
                missing = self.size - count[State.PENDING] - count[State.FINISHED]
                self._to_start += [(group, prompt_of[group])] * missing
