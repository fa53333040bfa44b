"""Who owns which row of the cache, and how the rows that decode are sampled.

Rows [0, active) decode; the others hold the keys of sessions whose message is done (their tool is
running, say) or nothing. Taking a row into the first ones, or out of them, swaps two rows.
Knows nothing of models, threads or asyncio.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agentrl.inference.embedded.kv_cache import RowCache
from agentrl.inference.embedded.stop_rules import StopRule
from agentrl.inference.policy import Sampling


@dataclass(slots=True, eq=False)
class Session:
    """The keys and values an episode has."""

    name: str
    row: int | None = None
    """None when it has no keys."""
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of its last message's prompt and of what was sampled; keys belong to the first ones."""
    cached: int = 0
    """How many of them have keys."""
    used: int = 0
    """When it was last used, in calls."""
    busy: bool = False
    """A message is being sampled, or waits for it."""


@dataclass(slots=True, eq=False)
class Request:
    """One message in the making."""

    session: str
    token_ids: array[int]
    """The prompt, then what was sampled."""
    prompt_tokens: int
    sampling: Sampling
    rule: StopRule
    key: int
    """Of its random stream."""
    limit: int
    """Tokens that may be sampled."""
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    versions: array[int] = field(default_factory=lambda: array("i"))
    top_ids: array[int] = field(default_factory=lambda: array("i"))
    top_logprobs: array[float] = field(default_factory=lambda: array("f"))
    features: NDArray[np.float32] | None = None
    """[D] of the prompt, as far as it was read."""

    @property
    def feature_tokens(self) -> int:
        """Last tokens of the prompt whose hidden states are still wanted; 0 where none are."""
        asked = self.sampling.prompt_features
        return 0 if asked is None or self.features is not None else min(asked.tokens, self.prompt_tokens)

    def add_features(self, states: NDArray[np.float32], end: int, tokens: int) -> None:
        """Add what a pass over a part of the prompt says of its last `tokens` tokens.

        Args:
            states: [Q, D] of the tokens [end - Q, end).
            end: where the part ends.
            tokens: how many the mean is over.
        """
        first = max(0, self.prompt_tokens - tokens - (end - len(states)))
        part = states[first:].sum(0) / np.float32(tokens)
        self.features = part if self.features is None else self.features + part

    @property
    def sampled(self) -> array[int]:
        """What was sampled so far."""
        return self.token_ids[self.prompt_tokens :]


class RowTable:
    """Rows of the cache and their owners.

    Args:
        rows: how many.
        cache: moved together with the owners.
        evict: whether a session that is not sampling may lose its row to one that is.
    """

    def __init__(self, rows: int, cache: RowCache, *, evict: bool) -> None:
        self._cache = cache
        self._evict = evict
        self.owners: list[Session | None] = [None] * rows
        self.requests: list[Request] = []
        """Of the rows [0, active)."""
        self.lengths = np.zeros(rows, dtype=np.int64)
        """[rows] cells of each row that hold keys."""
        self.last_tokens = np.zeros(rows, dtype=np.int64)
        self.keys = np.zeros(rows, dtype=np.uint64)
        self.counters = np.zeros(rows, dtype=np.uint64)
        self.temperatures = np.ones(rows, dtype=np.float32)
        self.top_k = np.zeros(rows, dtype=np.int64)
        self.top_p = np.ones(rows, dtype=np.float32)
        self.evictions = 0
        self.changes = 0
        """Counts changes of the rows that decode."""

    @property
    def active(self) -> int:
        """Number of rows that decode."""
        return len(self.requests)

    def place(self, session: Session) -> bool:
        """Give a session a row outside the active ones; False when there is none to give."""
        if session.row is not None:
            return True
        free = next((r for r in range(self.active, len(self.owners)) if self.owners[r] is None), None)
        if free is None and self._evict:
            idle = [o for o in self.owners[self.active :] if o is not None and not o.busy]
            if idle:
                victim = min(idle, key=lambda owner: owner.used)
                free = self.drop(victim)
                self.evictions += 1
        if free is None:
            return False
        session.row, session.cached = free, 0
        self.owners[free], self.lengths[free] = session, 0
        return True

    def drop(self, session: Session) -> int | None:
        """Take a session's row away; it must not be active."""
        row = session.row
        if row is not None:
            self.owners[row], self.lengths[row] = None, 0
        session.row, session.cached = None, 0
        return row

    def activate(self, session: Session, request: Request) -> int:
        """Make a session's row the last active one; returns it."""
        assert session.row is not None
        row = self.active
        self._exchange(session.row, row)
        self.requests.append(request)
        sampling = request.sampling
        self.lengths[row] = session.cached
        self.keys[row] = request.key
        self.counters[row] = len(request.token_ids) - request.prompt_tokens
        self.temperatures[row] = sampling.temperature
        self.top_k[row], self.top_p[row] = sampling.top_k, sampling.top_p
        self.changes += 1
        return row

    def deactivate(self, row: int) -> Session:
        """Take an active row out of the active ones; its owner keeps its keys."""
        session, request = self.owners[row], self.requests[row]
        assert session is not None
        session.token_ids, session.cached = request.token_ids, int(self.lengths[row])
        last = self.active - 1
        self._exchange(row, last)
        for values in (self.last_tokens, self.keys, self.counters, self.temperatures, self.top_k, self.top_p):
            values[row] = values[last]
        self.requests[row] = self.requests[last]
        self.requests.pop()
        self.changes += 1
        return session

    def _exchange(self, one: int, other: int) -> None:
        """Swap two rows: their keys, owners and lengths."""
        if one == other:
            return
        first, second = self.owners[one], self.owners[other]
        lengths = int(self.lengths[one]), int(self.lengths[other])
        if first is not None and second is not None:
            self._cache.swap(one, other, max(lengths))
        elif first is not None:
            self._cache.move(one, other, lengths[0])
        elif second is not None:
            self._cache.move(other, one, lengths[1])
        self.owners[one], self.owners[other] = second, first
        self.lengths[one], self.lengths[other] = lengths[1], lengths[0]
        if first is not None:
            first.row = other
        if second is not None:
            second.row = one


def shared_prefix(one: Sequence[int], other: Sequence[int], limit: int) -> int:
    """How many of the first `limit` tokens are the same."""
    limit = min(limit, len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    same = np.equal(np.asarray(one[:limit]), np.asarray(other[:limit]))
    return int(np.argmin(same))
