"""What samplers and tracker went through since a checkpoint, and going through it again.

Draws, failures and discards since the checkpoint are in the ledger, between the batches learned at that
time. A resumed run learns from those batches again; `redo` does what came between two of them at the
same place, so that samplers and tracker end as they would have without the interruption. It knows
nothing of checkpoints or of how the run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.config.settings import Settings
from agentrl.episode import Episode
from agentrl.rollout.outage import Outages
from agentrl.storage.ledger import EQUAL_REWARDS, TRAINING, Entry, Ledger
from agentrl.training.credit import Credit
from agentrl.training.prompts import PromptPool


class History:
    """Events since a checkpoint, by the version at which they happened.

    Args:
        settings: of the run.
        ledger: of the run; its newest attempt has begun.
        pool: samplers as they were at the checkpoint.
        credit: folds what was discarded.
        outages: which failures counted against their prompts.
        episodes: by id, those that finished or were discarded since.
        count: told each episode that finished since, where it did.
        position: of the ledger at the checkpoint, in bytes.
        version: of the checkpoint.
        last: version after the last batch that is learned from again.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        pool: PromptPool,
        credit: Credit,
        outages: Outages,
        episodes: Mapping[str, Episode],
        count: Callable[[Episode], None],
        *,
        position: int,
        version: int,
        last: int,
    ) -> None:
        self._ledger, self._pool, self._credit, self._episodes = ledger, pool, credit, episodes
        self._outages, self._count = outages, count
        self._counted: set[str] = set()
        self._group_size = settings.estimator.group_size
        self._quarantine_after = settings.sampler.quarantine_after
        self._drawn: set[str] = set()
        self._ended: Counter[str] = Counter()
        self._group_failures: Counter[int] = Counter()
        for record in ledger.events_before(position):
            if record.get("k", "").startswith(TRAINING):
                entry = ledger.entries[record["k"]]
                self._drawn.add(_unit(entry))
                if record["e"] == "failed" and not record.get("o") and entry.group is not None:
                    self._group_failures[entry.group] += 1
        self._next, self._last = version, last
        self._events: dict[int, list[dict[str, Any]]] = {}
        for record in ledger.events_since(position):
            if record["e"] == "learned":
                version = record["v"] + 1
            elif record["e"] == "attempt":
                version = record["v"]
            elif record.get("k", TRAINING).startswith(TRAINING):
                self._events.setdefault(min(max(version, self._next), last), []).append(record)

    @property
    def over(self) -> bool:
        """Whether everything was redone."""
        return self._next > self._last

    def redo(self, version: int) -> None:
        """Redo what happened while `version` was the newest one."""
        self._next = version + 1
        for record in self._events.pop(version, ()):
            if record["e"] == "forgiven":
                self._pool.forgive()
                continue
            entry = self._ledger.entries[record["k"]]
            self._redo(record, entry, self._pool.index[entry.prompt_id])

    def _redo(self, record: Mapping[str, Any], entry: Entry, prompt: int) -> None:
        event, unit = record["e"], _unit(entry)
        if event == "pending" and unit not in self._drawn:
            self._drawn.add(unit)
            self._pool.claim(prompt)
        elif event == "finished":
            self._finished(entry, prompt)
        elif event == "failed":
            self._failed(entry, prompt, counts=not record.get("o"))
        elif event == "discarded":
            if entry.key in self._episodes:  # else a power cut took it, and its reward with it
                self._credit.fold_one(self._episodes[entry.key])
            self._ended[unit] += 1
            if record["r"] == EQUAL_REWARDS and self._ended[unit] == self._group_size:
                self._pool.folded(prompt)
        elif event == "abandoned":
            self._ended[unit] += 1
            dead = entry.group is not None and self._group_failures[entry.group] >= self._quarantine_after
            if self._ended[unit] == 1 and not dead:
                self._pool.returned(prompt)

    def _finished(self, entry: Entry, prompt: int) -> None:
        self._outages.redo(self._pool.task(prompt).name, entry.prompt_id, succeeded=True, counted=False)
        if entry.key in self._episodes and entry.key not in self._counted:
            self._counted.add(entry.key)
            self._count(self._episodes[entry.key])

    def _failed(self, entry: Entry, prompt: int, *, counts: bool) -> None:
        self._outages.redo(self._pool.task(prompt).name, entry.prompt_id, succeeded=False, counted=counts)
        if entry.group is not None:
            self._group_failures[entry.group] += counts
            # Before the last one, the group has its member replaced.
            if counts and self._group_failures[entry.group] == self._quarantine_after:
                self._pool.failed(prompt)
        elif counts:
            self._pool.failed(prompt)
        else:
            self._pool.returned(prompt)


def discarded_since(ledger: Ledger, position: int) -> set[str]:
    """Ids of the graded episodes that were discarded after a byte position of the ledger."""
    return {record["k"] for record in ledger.events_since(position) if record["e"] == "discarded"}


def _unit(entry: Entry) -> str:
    """What was drawn together: an episode, or a group."""
    return entry.key if entry.group is None else f"group {entry.group}"
