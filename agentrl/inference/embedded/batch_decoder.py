"""Continuous batching: prompts are prefilled as rows come free, all other rows decode together.

Synchronous and single-threaded: `step` prefills what can be placed, samples one token for every
active row, and returns the messages that ended. Weights may be replaced between two steps. Knows
nothing of threads, asyncio, messages or environments.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrl.errors import PolicyError
from agentrl.inference.embedded.kv_cache import RowCache, additive_mask
from agentrl.inference.embedded.row_table import Request, RowTable, Session, shared_prefix
from agentrl.inference.embedded.token_sampling import SamplingRows, sample_tokens, uniforms
from agentrl.inference.embedded.weight_copy import copy_weights
from agentrl.inference.policy import FinishReason

PREFILL_TOKENS = 2048
"""Padded tokens of one prefill pass; longer prompts take several."""

PATIENCE = 4
"""Steps for which a message may wait for others to be prefilled with: a pass over one prompt costs
nearly as much as one over several, and all other rows wait meanwhile."""

Outcome = tuple[Request, FinishReason | Exception]


class BatchDecoder:
    """Decodes many sequences with one model.

    Args:
        model: a causal language model of transformers whose attention is `kv_cache.ATTENTION`.
        rows: sequences that decode together.
        context: longest sequence, in tokens.
        fixed: shapes that never change, so that a sequence does not depend on its neighbours: the
            batch always has all rows and attends over the whole context, prompts are prefilled one
            by one, and sessions wait for a row instead of evicting another's.
        keep_keys: sequences in flight keep keys of older weights after `load`.
    """

    def __init__(
        self, model: Any, *, rows: int, context: int, fixed: bool = False, keep_keys: bool = True
    ) -> None:
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self._model = model
        self._device: torch.device = model.device
        self._groups = heads // kv_heads
        self._fixed, self._keep_keys = fixed, keep_keys
        self._cache = RowCache(
            layers=config.num_hidden_layers,
            kv_heads=kv_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rows=rows,
            context=context,
            dtype=model.dtype,
            device=self._device,
            fixed=fixed,
        )
        self._rows = rows
        self._table = RowTable(rows, self._cache, evict=not fixed)
        self._waiting: deque[Request] = deque()
        self._sessions: dict[str, Session] = {}
        self._calls = 0
        self._held = 0
        self._sampling: tuple[int, SamplingRows] | None = None
        self.version = 0
        self.counters: dict[str, int] = {}
        self.reset_counters()

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._table.active or self._waiting)

    @property
    def active(self) -> int:
        """Number of sequences that decode."""
        return self._table.active

    def reset_counters(self) -> None:
        """Count from 0 again."""
        self.counters = dict.fromkeys(
            ("requests", "cancelled", "sampled_tokens", "prefilled_tokens", "reused_tokens", "steps"), 0
        )

    def statistics(self) -> dict[str, float]:
        """Counters since the start, and how many rows and requests there are now."""
        return {
            **self.counters,
            "running": self._table.active,
            "waiting": len(self._waiting),
            "sessions": len(self._sessions),
            "evictions": self._table.evictions,
            "cache_bytes": self._cache.bytes,
        }

    def submit(self, request: Request) -> None:
        """Queue a message. Raises PolicyError when its session has one in the making."""
        session = self._sessions.setdefault(request.session, Session(request.session))
        if session.busy:
            raise PolicyError(f"session {session.name!r} already has a message in the making")
        self._calls += 1
        session.busy, session.used = True, self._calls
        self.counters["requests"] += 1
        self._waiting.append(request)
        if len(self._sessions) > 4 * self._rows:
            for name in [n for n, s in self._sessions.items() if s.row is None and not s.busy]:
                del self._sessions[name]

    def cancel(self, request: Request) -> None:
        """Stop a message; its session keeps its keys. A message that already ended is fine."""
        if request in self._waiting:
            self._waiting.remove(request)
            self._sessions[request.session].busy = False
        elif request in self._table.requests:
            self._table.deactivate(self._table.requests.index(request)).busy = False
        else:
            return
        self.counters["cancelled"] += 1

    def release(self, name: str) -> list[Outcome]:
        """Forget a session; a message it has in the making fails."""
        mine = [r for r in (*self._table.requests, *self._waiting) if r.session == name]
        for request in mine:
            self.cancel(request)
        session = self._sessions.pop(name, None)
        if session is not None:
            self._table.drop(session)
        return [(r, PolicyError(f"session {name!r} was released while it was sampling")) for r in mine]

    def load(self, source: Any, version: int) -> None:
        """Replace the weights. Raises WeightSyncError and changes nothing when they do not fit."""
        copy_weights(self._model, source)
        self.version = version
        if self._keep_keys:
            return
        for row in reversed(range(self._table.active)):
            self._waiting.appendleft(self._table.requests[row])
            self._table.deactivate(row)
        for session in self._sessions.values():
            session.cached = 0

    def drain(self) -> list[Request]:
        """All messages in the making, which are given up."""
        requests = [*self._table.requests, *self._waiting]
        for request in requests:
            self.cancel(request)
        return requests

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Prefill what can be placed and sample a token for every active row."""
        ended: list[Outcome] = []
        if self._waiting and self._prefill_is_due():
            for group in self._groups_of(self._place_waiting()):
                self._prefill(group, ended)
        if self._table.active:
            self._decode(ended)
        return ended

    def _prefill_is_due(self) -> bool:
        """Whether enough messages wait for rows that are there, or one has waited long enough."""
        active = self._table.active
        ready = min(len(self._waiting), self._rows - active)
        self._held = self._held + 1 if ready else 0
        due = ready > 0 and (self._fixed or 8 * ready >= active or self._held > PATIENCE)
        if due:
            self._held = 0
        return due

    def _place_waiting(self) -> list[tuple[Session, Request]]:
        """Give rows to waiting messages, oldest first; a session that has one need not wait for others."""
        placed: list[tuple[Session, Request]] = []
        left: deque[Request] = deque()
        full = False
        for request in self._waiting:
            session = self._sessions[request.session]
            if session.row is None and not full:
                full = not self._table.place(session)
            if session.row is None:
                left.append(request)
                continue
            # So are those whose hidden states are wanted.
            limit = min(session.cached, len(request.token_ids) - max(1, request.feature_tokens))
            session.cached = shared_prefix(session.token_ids, request.token_ids, limit)
            self.counters["reused_tokens"] += session.cached
            placed.append((session, request))
        self._waiting = left
        return placed

    def _groups_of(self, placed: Sequence[tuple[Session, Request]]) -> list[list[tuple[Session, Request]]]:
        """Messages that are prefilled together: of similar length, within the limit of a pass."""
        if self._fixed:
            return [[one] for one in placed]
        groups: list[list[tuple[Session, Request]]] = []
        shortest = 0
        for one in sorted(placed, key=_missing):
            tokens = _missing(one)
            fits = groups and (len(groups[-1]) + 1) * tokens <= PREFILL_TOKENS and tokens <= 2 * shortest + 8
            if fits:
                groups[-1].append(one)
            else:
                groups.append([one])
                shortest = tokens
        return groups

    def _prefill(self, group: Sequence[tuple[Session, Request]], ended: list[Outcome]) -> None:
        first = self._table.active
        for session, request in group:
            self._table.activate(session, request)
        rows = slice(first, first + len(group))
        missing = np.array([_missing(one) for one in group])
        self.counters["prefilled_tokens"] += int(missing.sum())
        featured = [(i, r, r.feature_tokens) for i, (_, r) in enumerate(group) if r.feature_tokens]
        logits = None
        for begin in range(0, int(missing.max()), PREFILL_TOKENS):
            # Only a lone message is longer than one pass.
            counts = np.minimum(missing - begin, PREFILL_TOKENS)
            width = int(counts.max())
            ids = np.zeros((len(group), width), dtype=np.int64)
            for i, ((_, request), count) in enumerate(zip(group, counts, strict=True)):
                at = int(self._table.lengths[first + i])
                ids[i, width - count :] = request.token_ids[at : at + count]
            self._table.lengths[rows] += counts
            out = self._forward(rows, ids, self._table.lengths[rows], counts, hidden=bool(featured))
            logits = out.logits[:, -1]
            for i, request, tokens in featured:
                layer = out.hidden_states[request.sampling.prompt_features.layer]
                states = layer[i, width - min(int(counts[i]), tokens) :].float().cpu().numpy()
                request.add_features(states, int(self._table.lengths[first + i]), tokens)
        assert logits is not None
        self._emit(rows, logits, self._rows_sampling(rows), ended)

    def _decode(self, ended: list[Outcome]) -> None:
        active = self._table.active
        rows = slice(0, self._rows if self._fixed else active)
        self._table.lengths[:active] += 1
        counts = np.zeros(rows.stop, dtype=np.int64)
        counts[:active] = 1
        last = self._table.last_tokens[rows, None]
        logits = self._forward(rows, last, self._table.lengths[rows], counts).logits[:, -1]
        if self._sampling is None or self._sampling[0] != self._table.changes:
            self._sampling = (self._table.changes, self._rows_sampling(slice(0, active)))
        self.counters["steps"] += 1
        self._emit(slice(0, active), logits[:active], self._sampling[1], ended)

    def _forward(
        self, rows: slice, ids: np.ndarray, ends: np.ndarray, counts: np.ndarray, *, hidden: bool = False
    ) -> Any:
        """The model's output: logits [B, 1, V] of the last token of each row.

        Args:
            rows: of the cache.
            ids: [B, Q] padded on the left.
            ends: [B] length of each row with these tokens.
            counts: [B] tokens of each row that are not padding.
            hidden: whether hidden states [B, Q, D] of every layer are given too.
        """
        width = ids.shape[1]
        places = np.arange(width)[None, :]
        positions = ends[:, None] - width + places
        self._cache.reserve(int(ends.max()))
        attended = self._cache.attended(int(ends.max()))
        written = np.where(places < width - counts[:, None], -1, positions)
        self._cache.point_at(rows, self._tensor(written), attended)
        mask = additive_mask(self._tensor(ends), width, attended, self._groups, self._model.dtype)
        return self._model(
            input_ids=self._tensor(ids),
            attention_mask=mask,
            position_ids=self._tensor(np.maximum(positions, 0)),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=hidden,
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _rows_sampling(self, rows: slice) -> SamplingRows:
        table = self._table
        return SamplingRows.make(table.temperatures[rows], table.top_k[rows], table.top_p[rows], self._device)

    def _emit(self, rows: slice, logits: Tensor, sampling: SamplingRows, ended: list[Outcome]) -> None:
        """Sample a token for every row, write it down, and take the rows out that ended."""
        table = self._table
        top = max(request.sampling.top_logprobs for request in table.requests[rows])
        randoms = uniforms(table.keys[rows], table.counters[rows])
        tokens, logprobs, top_ids, top_logprobs = sample_tokens(logits, sampling, randoms, top)
        table.last_tokens[rows] = tokens
        table.counters[rows] += np.uint64(1)
        self.counters["sampled_tokens"] += len(tokens)
        done: list[tuple[int, FinishReason | Exception]] = []
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            row = rows.start + place
            request = table.requests[row]
            if not math.isfinite(logprob):
                done.append((row, PolicyError(f"the logits of policy version {self.version} are not finite")))
                continue
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            request.versions.append(self.version)
            if asked := request.sampling.top_logprobs:
                request.top_ids.frombytes(top_ids[place, :asked].tobytes())
                request.top_logprobs.frombytes(top_logprobs[place, :asked].tobytes())
            if request.rule.ended(request.token_ids, request.prompt_tokens):
                done.append((row, FinishReason.STOP))
            elif len(request.logprobs) >= request.limit:
                done.append((row, FinishReason.LENGTH))
        for row, reason in reversed(done):
            ended.append((table.requests[row], reason))
            session = table.deactivate(row)
            session.busy = False
            if isinstance(reason, Exception):
                self._forget_poisoned(session)

    def _forget_poisoned(self, session: Session) -> None:
        row = self._table.drop(session)
        if row is not None:
            self._cache.clear(row)


def _missing(placed: tuple[Session, Request]) -> int:
    """Tokens of a message that have no keys yet."""
    session, request = placed
    return len(request.token_ids) - session.cached
