"""The files of a run folder, condensed to what its page shows.

Reads only; every file may be missing or half written, because a run may be under way or have been
killed. Knows nothing of HTML.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.report.health import NEWEST, find_warnings, judge
from agentrl.storage.cost import Cost, spent
from agentrl.storage.durable import read_lines
from agentrl.storage.metrics import Row, read_metrics


def describe_outage(row: Mapping[str, Any]) -> str:
    """One sentence for a row of kind `outage`."""
    name, seconds = row.get("environment") or "the environment", row.get("seconds") or 0.0
    if row.get("state") == "back":
        return f"{name} works again after {seconds:.0f} s; no prompt was lost"
    return (
        f"{name} is paused: its last {row.get('failures')} episodes failed, the last one at the "
        f"{row.get('boundary')}: {row.get('last')}; trying again in {row.get('retry_s', 0.0):.1f} s"
    )


LEFT_OUT = frozenset({"kind", "step"})
"""Numbers of a row that are no curves."""


def read_run(path: Path) -> dict[str, Any]:
    """Everything the page shows of the run in `path`, as plain JSON values."""
    rows = _rows(path / "metrics.jsonl")
    steps = [row for row in rows if row.get("kind") == "step"]
    evaluations = [row for row in rows if row.get("kind") == "eval"]
    summary = _json(path / "summary.json")
    running = is_running(path)
    staleness = _staleness(steps)
    cost, start = spent(rows), spent(rows, 0)
    drawn = [
        row
        | {
            "episodes_total": row.get("episodes", 0) + cost.episodes_initial,
            "tokens_total": row.get("tokens_generated", 0) + cost.tokens_initial,
        }
        for row in steps
    ]
    return {
        "name": path.name,
        "running": running,
        "sentence": sentence(steps, evaluations, summary, cost),
        "tiles": _tiles(steps, evaluations, summary, cost),
        "columns": columns(drawn),
        "reliability": [row.get("reliability") for row in steps],
        "start": {
            "version": 0,
            "time_s": _short(start.seconds),
            "episodes_total": start.episodes_total,
            "tokens_total": start.tokens_total,
        },
        "environments": _environments(steps),
        "idle_share": _idle_shares(steps),
        "evaluations": [_evaluation(row) for row in evaluations],
        "staleness": staleness,
        "ledger": summary.get("ledger") or {},
        "discarded": summary.get("discarded") or {},
        "warnings": find_warnings(steps) + outage_sentences(rows),
        "health": health(steps, rows),
        "config": _text(path / "config.toml"),
        "settings": list(read_lines(path / "settings.jsonl", skip_damaged=True)),
        "notes": [row for row in rows if row.get("kind") not in ("step", "eval")][-200:],
        "summary": summary,
        "identity": _json(path / "run.json"),
    }


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Every number that some step logged, as one list over the steps; of nested ones `controlled.name`."""
    flat = [_numbers(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    names = names or dict.fromkeys(("version", "time_s"))
    return {
        name: [row.get(name) if name == "at" else _short(row.get(name)) for row in flat] for name in names
    }


def _numbers(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name == "controlled" and isinstance(value, dict):
            found |= {f"controlled.{key}": item for key, item in value.items()}
        elif name not in LEFT_OUT and isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def health(steps: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Whether the run is well in one sentence, and every rule with what was seen."""
    rules = judge(steps)
    outages = outage_sentences(rows)
    rules += [
        {"stated": "no environment is paused", "evidence": "failures", "broken": text} for text in outages
    ]
    broken = [rule["broken"] for rule in rules if rule["broken"]]
    if not steps:
        text = "Too early to tell: no step was taken yet."
    elif not broken:
        text = f"Healthy: all {len(rules)} rules hold over the newest {min(len(steps), NEWEST)} steps."
    else:
        more = f" ({len(broken) - 1} more below)" if len(broken) > 1 else ""
        text = f"Worth a look: {broken[0]}{more}."
    return {"text": text, "rules": rules, "state": "unknown" if not steps else "warned" if broken else "well"}


def outage_sentences(rows: Sequence[Row]) -> list[str]:
    """What is paused at the end of the rows, one sentence for each environment."""
    newest = {row.get("environment"): row for row in rows if row.get("kind") == "outage"}
    return [describe_outage(row) for row in newest.values() if row.get("state") == "paused"]


def is_running(path: Path) -> bool:
    """Whether a process holds the lock of the run."""
    try:
        with (path / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def sentence(steps: Sequence[Row], evaluations: Sequence[Row], summary: Row, cost: Cost) -> str:
    """The run in one plain sentence."""
    if not steps and not evaluations:
        return "Nothing has been learned yet."
    parts: list[str] = []
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        count = last.get("episodes")
        held_out = f" over {count:,} held-out episodes" if count else " on held-out prompts"
        if len(evaluations) > 1:
            parts.append(
                f"Mean reward{held_out} went from {_reward(first)} to {_reward(last)} ({interval_text(last)})"
            )
        else:
            parts.append(f"Mean reward{held_out} is {_reward(last)} before learning")
    if steps:
        last = steps[-1]
        parts.append(
            f"{last['version']:,} policy versions learned from {int(last.get('episodes') or 0):,} episodes "
            f"in {duration(summary.get('wall_s') or last.get('time_s') or 0.0)}"
        )
    if cost.episodes_initial:
        parts.append(
            f"{cost.episodes_initial:,} more episodes were played for initial values: "
            f"{cost.tokens_initial:,} of {cost.tokens_total:,} tokens, {duration(cost.seconds_initial)}"
        )
    return "; ".join(parts) + "."


def _reward(row: Row, digits: int = 3) -> str:
    value = row.get("reward_mean")
    return "?" if value is None else f"{value:.{digits}f}"


def interval_text(row: Row) -> str:
    """`95% interval 0.93 to 0.98`, or nothing where the row has none."""
    interval = row.get("interval")
    if not interval or interval[0] is None:
        return "no interval"
    return f"95% interval {interval[0]:.2f} to {interval[1]:.2f}"


def duration(seconds: float) -> str:
    """`71 s`, `4 min 10 s`, `2 h 05 min`."""
    total = round(seconds)
    if total < 120:
        return f"{total} s"
    if total < 7200:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def _rows(path: Path) -> list[Row]:
    return read_metrics(path) if path.exists() else []


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}  # not written yet


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _short(value: Any) -> Any:
    """Six significant digits are more than a screen shows."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _evaluation(row: Row) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if isinstance(value, int | float | str) or value is None}
    kept["interval"] = row.get("interval")
    return kept


def _staleness(steps: Sequence[Row]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in steps:
        for age, count in (row.get("staleness") or {}).items():
            total[age] = total.get(age, 0) + count
    return dict(sorted(total.items(), key=lambda item: int(item[0])))


def _environments(steps: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Score and share of the batch of each environment of a mixture, per step; empty for one environment."""
    names = sorted({name for row in steps for name in row.get("environments") or {}})
    if len(names) < 2:
        return {}
    found: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        parts = [(row.get("environments") or {}).get(name) or {} for row in steps]
        whole = [sum(part["episodes"] for part in (row.get("environments") or {}).values()) for row in steps]
        found[name] = {
            "score": [_short(part.get("score_mean")) for part in parts],
            "share": [
                _short(part.get("episodes", 0) / count) if count else None
                for part, count in zip(parts, whole, strict=True)
            ],
        }
    return found


def _idle_shares(steps: Sequence[Row]) -> list[float | None]:
    """Share of the wall time between two steps that the learner waited for episodes."""
    shares: list[float | None] = []
    before_idle = before_time = 0.0
    for row in steps:
        idle, now = row.get("learner_idle_s"), row.get("time_s")
        if idle is None or now is None or now <= before_time:
            shares.append(None)
            continue
        # A resumed attempt counts its idle time from zero.
        gained = idle - before_idle if idle >= before_idle else idle
        shares.append(_short(min(1.0, gained / (now - before_time))))
        before_idle, before_time = idle, now
    return shares


def _tiles(steps: Sequence[Row], evaluations: Sequence[Row], summary: Row, cost: Cost) -> list[list[str]]:
    last: Row = steps[-1] if steps else {}
    tiles: list[list[str]] = []
    if evaluations:
        first, newest = evaluations[0], evaluations[-1]
        tiles.append(["held-out reward", f"{_reward(first, 2)} → {_reward(newest, 2)}"])
    calls = summary.get("python_calls")
    wall = summary.get("wall_s") or last.get("time_s")
    facts: list[tuple[str, Any]] = [
        ("policy versions", last.get("version")),
        ("episodes", cost.episodes_total or None),
        ("of them for initial values", cost.episodes_initial or None),
        ("tokens sampled", summary.get("tokens_total") or cost.tokens_total or None),
        ("of them for initial values", cost.tokens_initial or None),
        ("tool calls", calls),
        ("wall time", None if wall is None else duration(wall)),
        ("CPU time", duration(summary["cpu_s"]) if summary.get("cpu_s") else None),
        ("generation", _rate(last.get("generate_tokens_per_s"))),
        ("learning", _rate(summary.get("learn_tokens_per_s") or last.get("learn_tokens_per_s"))),
    ]
    tiles += [[name, _number(value)] for name, value in facts if value is not None]
    return tiles


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f} tok/s"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
