"""From lines of a run's files to rows of its index. Pure: it opens nothing."""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

Upsert = tuple[str, list[tuple[Any, ...]]]

SAID = 160
"""Characters of the last message that a list of episodes shows."""

COLUMNS = (
    "id", "kind", "dispatch", "prompt", "environment", "start_version", "reward", "stop", "error", "turns",
    "calls", "call_errors", "tokens", "sampled", "segments", "seconds", "tool_seconds", "grade_seconds",
    "ended", "verdict", "answer", "said", "file", "position",
)  # fmt: skip
EPISODE = (
    f"INSERT INTO episodes({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT(id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[1:])}"
)
CREDIT = (
    "INSERT INTO episodes(id, kind, score, baseline, count, advantage, version, place) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET score = excluded.score, "
    "baseline = excluded.baseline, count = excluded.count, advantage = excluded.advantage, "
    "version = CASE WHEN state IS NULL THEN excluded.version ELSE version END, place = excluded.place"
)
_DISPATCHED = (
    "INSERT INTO episodes(id, kind, dispatch, prompt, start_version, state) "
    "VALUES (?, ?, ?, ?, ?, 'pending') "
    "ON CONFLICT(id) DO UPDATE SET prompt = excluded.prompt, start_version = excluded.start_version, "
    "state = 'pending', reason = NULL, version = NULL"
)
_ENDED = "UPDATE episodes SET state = ?, reason = ?, score = coalesce(?, score) WHERE id = ?"
_LEARNED = "UPDATE episodes SET state = ?, reason = ?, version = ?, place = ? WHERE id = ?"
_AGAIN = "UPDATE episodes SET state = 'finished', reason = NULL, version = NULL WHERE version > ?"


def episode_row(record: dict[str, Any], file: int, position: int) -> tuple[Any, ...] | None:
    """The row of a recorded episode; None where the record is not one."""
    identity = record.get("episode_id")
    if not isinstance(identity, str) or not identity:
        return None
    turns, segments = _dicts(record.get("turns")), _dicts(record.get("segments"))
    calls = [call for turn in turns for call in turn.get("tool_calls") or [] if isinstance(call, list)]
    failure = record.get("failure")
    tokens, sampled = _counts(segments)
    return (
        identity,
        identity[0],
        _number(record.get("dispatch_index")),
        _text(record.get("prompt_id")),
        _text(record.get("environment")),
        _number(record.get("start_version")),
        _number(record.get("reward")),
        _text(record.get("stop_reason")),
        ": ".join(map(str, failure)) if isinstance(failure, list) else None,
        len(turns),
        len(calls),
        sum(len(call) > 3 and call[3] != "ok" for call in calls),
        tokens,
        sampled,
        len(segments),
        _number(record.get("seconds")),
        _number(record.get("tool_seconds")),
        _number(record.get("grade_seconds")),
        _number(record.get("ended")),
        _text(record.get("verdict")),
        _text(record.get("answer")),
        (_text(turns[-1].get("text")) or "")[-SAID:] if turns else "",
        file,
        position,
    )


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _counts(segments: list[dict[str, Any]]) -> tuple[int, int]:
    """Tokens and sampled tokens of all segments."""
    tokens = sampled = 0
    for segment in segments:
        with contextlib.suppress(ValueError, TypeError):
            mask = base64.b64decode(segment.get("loss_mask") or "")
            tokens, sampled = tokens + len(mask), sampled + mask.count(1)
    return tokens, sampled


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if abs(value) < 2**62 else None


def _text(value: Any) -> str | None:
    # A lone surrogate is no text for SQLite.
    return value[:2000].encode(errors="replace").decode() if isinstance(value, str) else None


def credit_rows(lines: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """(id, kind, score, baseline, count, advantage, version, place) of the episodes of each step."""
    rows: list[tuple[Any, ...]] = []
    for line in lines:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            ids = line["ks"]
            counts = line.get("n") or [None] * len(ids)
            columns = zip(ids, line["s"], line["b"], counts, line["A"], strict=True)
            rows += [
                (key, key[:1], score, baseline, count, advantage, line["v"], place)
                for place, (key, score, baseline, count, advantage) in enumerate(columns)
            ]
    return rows


def ledger_statements(lines: Iterable[dict[str, Any]]) -> list[Upsert]:
    """Updates in the order of the events, those of one kind that follow each other together."""
    statements: list[Upsert] = []
    for event in _events(lines):
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            for text, row in _changes(event):
                if statements and statements[-1][0] == text:
                    statements[-1][1].append(row)
                else:
                    statements.append((text, [row]))
    return statements


def _events(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.get("e") == "together":
            yield from (event for event in line.get("of") or [] if isinstance(event, dict))
        else:
            yield line


def _changes(event: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    kind = event["e"]
    if kind == "attempt":
        yield _AGAIN, (event["v"],)
    elif kind == "pending":
        key = event["k"]
        yield _DISPATCHED, (key, key[:1], int(key[1:]), event["p"], event["v"])
    elif kind == "learned":
        masked = event.get("x") or {}
        for place, key in enumerate(event["ks"]):
            state = "discarded" if key in masked else "learned"
            yield _LEARNED, (state, masked.get(key), event["v"] + 1, place, key)
    elif kind == "lost":
        yield _ENDED, ("pending", None, None, event["k"])
    elif kind in ("finished", "failed", "evaluated", "discarded", "abandoned"):
        yield _ENDED, (kind, event.get("r"), event.get("s"), event["k"])
