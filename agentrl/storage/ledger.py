"""What became of every dispatched episode, on disk, exactly once.

States and transitions::

    pending --> finished --> learned@(attempt, version)
       |           |-------> discarded(reason)
       |           '-------> pending              (lost: its record is not on disk after a power cut)
       |--> evaluated(score)                    (initial rollouts)
       |--> failed(boundary)
       '--> abandoned(reason)

A resumed run begins a new *attempt* at the checkpoint's version: episodes that were pending are
started again under the same index, and episodes learned after that version are finished again.
What happens at once is one line of the file (`together`), so a kill never leaves half of it. A line also says
what was done to the prompt at the sampler (`Done`), so that it can be done again.
The file is the truth; the object in memory is what a reader would compute from it. It knows nothing
of tokens, rewards or prompts' texts.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import DataError, LedgerError
from agentrl.storage.durable import LineFile, read_lines

TRAINING = "t"
"""First letter of the ledger keys of training episodes."""

INITIAL = "i"
"""First letter of the ledger keys of rollouts for initial values."""

EQUAL_REWARDS = "all rewards of the group are equal"

LOST_MEMBER = "a member of the group failed"

NOTHING_SAMPLED = "it ended before a token was sampled"

TOO_OLD = "it is older than stream.staleness"
"""Why graded episodes are not learned from: dynamic sampling, a group that can never be complete, an
environment that ended them in its prompt, or their age under `stream.stale_policy = "drop"`."""


Done = Literal["", "claim", "copy", "folded", "returned", "failed"]
"""What was done to an episode's prompt when it changed its state: drawn, played
once more, and how it came back; names of
methods of the pool. Of a group, one of its episodes has it."""


class State(StrEnum):
    """Where an episode is."""

    PENDING = "pending"
    FINISHED = "finished"
    LEARNED = "learned"
    EVALUATED = "evaluated"
    FAILED = "failed"
    DISCARDED = "discarded"
    ABANDONED = "abandoned"

    @property
    def terminal(self) -> bool:
        """Whether nothing can become of the episode any more (in this attempt)."""
        return self not in (State.PENDING, State.FINISHED)


_ALLOWED: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.FINISHED, State.EVALUATED, State.FAILED, State.ABANDONED}),
    State.FINISHED: frozenset({State.LEARNED, State.DISCARDED, State.ABANDONED}),
}


_OF_THE_RUN = ("attempt", "forgiven")
"""Events that are of no one episode."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of one episode."""

    key: str
    """Kind and index: `t12` is the thirteenth training episode, `i3` an initial rollout."""
    prompt_id: str
    state: State
    attempt: int
    version: int = -1
    """The learner's version before the step whose batch it was in; -1 outside a batch."""
    batch: int = -1
    """Place in its batch, when learned."""
    reason: str = ""
    start_version: int = 0
    group: int | None = None
    copies: int = 0
    """Members of the set of fresh copies that its group is; 0 for a group."""
    score: float | None = None
    """Of an evaluated or a discarded episode."""
    tokens: int = 0
    """Sampled in a finished or evaluated episode."""
    excused: bool = False
    """Failed for a reason that says nothing about its prompt: everything failed then."""


class Ledger:
    """The ledger of one run.

    Args:
        path: the file; read when it exists.

    Raises:
        LedgerError: the file holds an impossible transition.
    """

    def __init__(self, path: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self.counts: Counter[State] = Counter()
        self.attempt = 0
        self._held: list[dict[str, Any]] | None = None
        self._file = LineFile(path, "ledger")
        self._read(path)

    def _read(self, path: Path) -> None:
        number = 0
        try:
            for line in read_lines(path):
                number += 1
                for record in _flat((line,)):
                    self._apply(record)
        except (DataError, LedgerError, KeyError, TypeError, AttributeError, ValueError) as error:
            where = str(error) if isinstance(error, DataError) else f"{path}, line {number}: {error!r}"
            good = number if isinstance(error, DataError) else number - 1
            raise LedgerError(
                f"{where}; keep its first {good} lines (`sed -i '{good + 1},$d' {path}`) to go on from the "
                "newest checkpoint that is not younger than they are"
            ) from error

    @property
    def position(self) -> int:
        """Size of the file in bytes; a checkpoint remembers it."""
        return self._file.size

    def begin_attempt(self, version: int) -> int:
        """Start a new attempt at a checkpoint's version and return its number, from 1.

        Episodes learned at `version` or later are finished again; pending ones stay pending.
        """
        self._write({"e": "attempt", "n": self.attempt + 1, "v": version})
        return self.attempt

    def dispatched(
        self,
        key: str,
        prompt_id: str,
        start_version: int,
        group: int | None = None,
        *,
        copies: int = 0,
        done: Done = "",
    ) -> None:
        """An episode was started (again, when it was pending in the attempt before)."""
        record: dict[str, Any] = {"e": "pending", "k": key, "p": prompt_id, "v": start_version}
        if group is not None:
            record |= {"g": group} | ({"n": copies} if copies else {})
        self._write(_with(record, done))

    def finished(self, key: str, tokens: int = 0) -> None:
        """Its reward is known and it is on disk, with so many sampled tokens."""
        self._write({"e": "finished", "k": key, "t": tokens})

    def failed(self, key: str, reason: str, *, excused: bool = False, done: Done = "") -> None:
        """Machinery broke; it has no reward. Excused, its prompt is not to blame."""
        record = {"e": "failed", "k": key, "r": reason} | ({"o": True} if excused else {})
        self._write(_with(record, done))

    def forgiven(self) -> None:
        """The failures of all prompts were forgiven; those set aside are drawn again."""
        self._write({"e": "forgiven"})

    def lost(self, keys: Iterable[str]) -> None:
        """Finished episodes of an earlier attempt that are not on disk: pending again."""
        self._write_all(tuple({"e": "lost", "k": key} for key in keys))

    def evaluated(self, key: str, score: float, tokens: int = 0) -> None:
        """It was measured, with this score and so many sampled tokens, and is never learned from."""
        self._write({"e": "evaluated", "k": key, "s": score, "t": tokens})

    def discarded(self, scores: Mapping[str, float], reason: str, *, done: Done = "") -> None:
        """They are folded with these scores, in this order, but not learned from, for a stated reason."""
        records = [{"e": "discarded", "k": key, "r": reason, "s": score} for key, score in scores.items()]
        if records:
            records[-1] = _with(records[-1], done)
        self._write_all(tuple(records))

    def abandoned(self, keys: Iterable[str], reason: str, *, returned: Collection[str] = ()) -> None:
        """The run ended before they did; the prompts of some can be drawn again."""
        self._write_all(
            tuple(
                _with({"e": "abandoned", "k": key, "r": reason}, "returned" if key in returned else "")
                for key in keys
            )
        )

    def learned(self, keys: Iterable[str], version: int, *, masked: Mapping[str, str] | None = None) -> None:
        """One batch was learned from, in this order, by the learner at `version`.

        Args:
            masked: episodes of the batch that were folded but not learned from, with the reason;
                they end up discarded.
        """
        self._write({"e": "learned", "ks": list(keys), "v": version, "x": dict(masked or {})})

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Everything written inside reaches the file at the end, as one line: all of it or nothing."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
            held, self._held = self._held, None
            self._append(tuple(held))
        finally:
            self._held = None

    def learned_batches(self, version: int) -> dict[int, list[str]]:
        """Batches learned at `version` or later, by version."""
        batches: dict[int, list[Entry]] = {}
        for entry in self.entries.values():
            if entry.version >= version:
                batches.setdefault(entry.version, []).append(entry)
        return {
            at: [entry.key for entry in sorted(entries, key=lambda entry: entry.batch)]
            for at, entries in sorted(batches.items())
        }

    def in_state(self, state: State, kind: str = "") -> list[Entry]:
        """Entries in a state, in order of dispatch."""
        return [
            entry for entry in self.entries.values() if entry.state is state and entry.key.startswith(kind)
        ]

    def events_since(self, position: int) -> Iterator[dict[str, Any]]:
        """Events after a byte position of the file."""
        return _flat(read_lines(self._file.path, position))

    def summary(self) -> dict[str, int]:
        """Number of episodes per state."""
        return {state.value: self.counts[state] for state in State if self.counts[state]}

    def discarded_by_reason(self) -> dict[str, int]:
        """Number of discarded, failed and abandoned episodes per reason."""
        reasons: Counter[str] = Counter()
        for entry in self.entries.values():
            if entry.state in (State.DISCARDED, State.FAILED, State.ABANDONED):
                reasons[f"{entry.state.value}: {entry.reason}"] += 1
        return dict(sorted(reasons.items()))

    def sync(self) -> None:
        """Flush to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._write_all((record,))

    def _write_all(self, records: tuple[dict[str, Any], ...]) -> None:
        # Checked before it is written: an impossible transition must not reach the file.
        for record in records:
            self._check(record)
        if self._held is None:
            self._append(records)
        else:
            self._held += records
        for record in records:
            self._apply(record)

    def _append(self, records: tuple[dict[str, Any], ...]) -> None:
        if records:
            self._file.append(records[0] if len(records) == 1 else {"e": "together", "of": records})

    def _check(self, record: dict[str, Any]) -> None:
        event = record["e"]
        if event in _OF_THE_RUN:
            return
        for key in record["ks"] if event == "learned" else (record["k"],):
            entry = self.entries.get(key)
            if event == "pending":
                if entry is not None and not (entry.state is State.PENDING and entry.attempt < self.attempt):
                    raise LedgerError(f"episode {key} is {entry.state} and cannot be dispatched again")
            elif event == "lost":
                if entry is None or entry.state is not State.FINISHED:
                    raise LedgerError(f"episode {key} is not finished and cannot be lost")
            elif entry is None:
                raise LedgerError(f"episode {key} was never dispatched and cannot become {event}")
            elif State(event) not in _ALLOWED.get(entry.state, frozenset()):
                raise LedgerError(f"episode {key} is {entry.state} and cannot become {event}")

    def _apply(self, record: dict[str, Any]) -> None:
        self._check(record)
        event = record["e"]
        if event == "forgiven":
            return
        if event == "attempt":
            self.attempt = record["n"]
            for entry in list(self.entries.values()):
                if entry.version >= record["v"]:
                    self._put(replace(entry, state=State.FINISHED, version=-1, batch=-1, reason=""))
        elif event == "pending":
            self._put(
                Entry(
                    key=record["k"],
                    prompt_id=record["p"],
                    state=State.PENDING,
                    attempt=self.attempt,
                    start_version=record["v"],
                    group=record.get("g"),
                    copies=record.get("n", 0),
                )
            )
        elif event == "lost":
            entry = self.entries[record["k"]]
            # Of the attempt before, so that it can be dispatched in this one.
            self._put(replace(entry, state=State.PENDING, attempt=self.attempt - 1))
        elif event == "learned":
            for place, key in enumerate(record["ks"]):
                self._put(
                    replace(
                        self.entries[key],
                        state=State.DISCARDED if key in record["x"] else State.LEARNED,
                        reason=record["x"].get(key, ""),
                        attempt=self.attempt,
                        version=record["v"],
                        batch=place,
                    )
                )
        else:
            entry = self.entries[record["k"]]
            reason, score = record.get("r", ""), record.get("s")
            tokens, excused = record.get("t", 0), record.get("o", False)
            state = State(event)
            self._put(replace(entry, state=state, reason=reason, score=score, tokens=tokens, excused=excused))

    def _put(self, entry: Entry) -> None:
        old = self.entries.get(entry.key)
        if old is not None:
            self.counts[old.state] -= 1
        self.counts[entry.state] += 1
        self.entries[entry.key] = entry


def _with(record: dict[str, Any], done: Done) -> dict[str, Any]:
    return record | {"do": done} if done else record


def _flat(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        if record["e"] == "together":
            yield from record["of"]
        else:
            yield record
