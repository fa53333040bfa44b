"""One episode as the page shows it: turns, calls, and each token with what engine and learner said of it."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.report.vocabulary import Vocabulary
from agentrl.storage.steps import SegmentValues, StepRecord, segment_values

KEPT = (
    "episode_id", "dispatch_index", "prompt_id", "environment", "reward", "reward_parts", "reward_range",
    "verdict", "stop_reason", "failure", "start_version", "temperature", "answer", "seconds", "tool_seconds",
    "grade_seconds", "group",
)  # fmt: skip


def episode_view(
    record: dict[str, Any], row: dict[str, Any], step: StepRecord | None, vocabulary: Vocabulary | None
) -> dict[str, Any]:
    """Plain JSON values of one recorded episode.

    Args:
        record: as it is on disk.
        row: of the index.
        step: that learned from it, where its file is still there.
        vocabulary: of the run; without one the tokens have no texts.
    """
    values = _values(step, row)
    segments = [item for item in record.get("segments") or [] if isinstance(item, dict)]
    ids = [_array(item.get("token_ids"), np.int32) for item in segments]
    return {
        **row,
        **{name: record.get(name) for name in KEPT},
        "turns": [_turn(turn) for turn in record.get("turns") or [] if isinstance(turn, dict)],
        "segments": [
            _segment(item, ids[at], values[at] if values and at < len(values) else None, vocabulary)
            | {"parent": _parent(ids, at)}
            for at, item in enumerate(segments)
        ],
    }


def _values(step: StepRecord | None, row: dict[str, Any]) -> list[SegmentValues] | None:
    if step is None or row["id"] not in step.episode_ids:
        return None
    place = step.episode_ids.index(row["id"])
    return segment_values(step, place) if np.isfinite(step.advantages[place]) else None


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "arguments", "result", "status", "seconds")
    calls = [
        dict(zip(names, call, strict=False))
        for call in turn.get("tool_calls") or []
        if isinstance(call, list)
    ]
    return {
        **{name: turn.get(name) for name in ("segment", "start", "end", "text", "reward")},
        "calls": calls,
    }


def _segment(
    item: dict[str, Any], ids: NDArray[Any], values: SegmentValues | None, vocabulary: Vocabulary | None
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        **{name: item.get(name) for name in ("agent", "model", "trainable")},
        "size": len(ids),
        "ids": _pack(ids),
        "mask": item.get("loss_mask"),
        "logprobs": item.get("logprobs"),
        "versions": item.get("policy_versions"),
    }
    if vocabulary is not None:
        shown["texts"] = vocabulary.texts(ids.tolist())
        shown["special"] = [at for at, token in enumerate(ids.tolist()) if token in vocabulary.special]
    if values is not None and len(values.logprobs) == len(ids):
        shown |= {"learner": _pack(values.logprobs), "entropy": _pack(values.entropies)}
        shown["advantages"] = _pack(values.advantages)
        if values.top_ids is not None and values.top_logprobs is not None:
            shown["top"] = _top(values.top_ids, values.top_logprobs, vocabulary)
    return shown


def _top(
    ids: NDArray[Any], logprobs: NDArray[Any], vocabulary: Vocabulary | None
) -> list[list[list[Any]] | None]:
    """Of each token [text, log-probability] of the likeliest; None where it was not learned from."""

    def text(token: int) -> str:
        return str(token) if vocabulary is None else vocabulary.bytes_of(token).decode(errors="replace")

    return [
        [
            [text(token), round(value, 4)]
            for token, value in zip(some, of, strict=True)
            if math.isfinite(value)
        ]
        if some[0] >= 0
        else None
        for some, of in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]


def _array(text: Any, kind: Any) -> NDArray[Any]:
    try:
        return np.frombuffer(base64.b64decode(text or ""), dtype=np.dtype(kind).newbyteorder("<"))
    except (ValueError, TypeError):
        return np.zeros(0, dtype=kind)


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def _parent(ids: list[NDArray[Any]], at: int) -> dict[str, int] | None:
    """The earlier segment with which a segment shares its longest beginning, and how long that is."""
    shared = [_shared(ids[at], other) for other in ids[:at]]
    best = max(shared, default=0)
    return {"segment": shared.index(best), "tokens": best} if best else None


def _shared(one: NDArray[Any], other: NDArray[Any]) -> int:
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size
