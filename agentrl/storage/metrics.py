"""Metrics of a run: one JSON line per learner step, evaluation and phase, and running totals.

`metrics.jsonl` continues over resumed attempts: a step done again has a row with a higher `attempt`,
and readers take the last row of a step (`read_metrics`). Knows nothing of how numbers are made.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.episode import Episode
from agentrl.storage.durable import LineFile, read_lines
from agentrl_envs.graders import UNDECIDED

Row = dict[str, Any]
Listener = Callable[[Row], object]


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and tells listeners (terminal, tracking services)."""

    def __init__(self, path: Path, listeners: Sequence[Listener] = ()) -> None:
        self._file = LineFile(path, "metrics")
        self._listeners = tuple(listeners)

    def write(self, kind: str, **values: Any) -> Row:
        """Write one row; numbers that are not finite become null."""
        row: Row = {
            "kind": kind,
            "at": round(time.time(), 3),
            **{name: _plain(value) for name, value in values.items()},
        }
        self._file.append(row)
        for listener in self._listeners:
            listener(row)
        return row

    def tell(self, kind: str, **values: Any) -> None:
        """Tell listeners only: progress that is not worth keeping."""
        for listener in self._listeners:
            listener({"kind": kind, **values})

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value


def read_metrics(path: Path) -> list[Row]:
    """Rows of a run; of what was done again after a resume (steps, evaluations, initial values), the last.

    Damaged rows are left out.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for number, row in enumerate(read_lines(path, skip_damaged=True)):
        again = row["kind"] in ("step", "eval", "initial")
        key = (row["kind"], row.get("step"), row.get("name")) if again else (row["kind"], number)
        rows.pop(key, None)
        rows[key] = row
    return list(rows.values())


def describe_batch(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What the episodes of a batch were like: means per episode and shares, some also by environment."""
    by_environment: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_environment.setdefault(episode.environment, []).append(episode)
    environments = {name: _describe(some) for name, some in sorted(by_environment.items())}
    shown = ("reward_mean", "score_mean", "turns_mean", "tool_calls_mean", "truncated_share")
    return {
        **_describe(episodes),
        "reward_parts": _parts(episodes),
        "counts": dict(sum((Counter(episode.counts) for episode in episodes), Counter[str]())),
        "environments": {
            name: {"episodes": len(by_environment[name]), **{key: values[key] for key in shown}}
            for name, values in environments.items()
        },
    }


def _parts(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean of each named part of the reward, over the episodes that have it."""
    found: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in episode.reward_parts.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def _economy(episodes: Sequence[Episode], calls: int) -> dict[str, float | None]:
    """What tools were worth: right answers (score above one half) and calls, and when the first one came."""
    right = sum(episode.score > 0.5 for episode in episodes)
    first = [tokens for one in episodes if (tokens := one.tokens_to_first_call) is not None]
    return {
        "right_per_call": right / calls if calls else None,
        "calls_per_right": calls / right if right else None,
        "first_call_tokens_mean": sum(first) / len(first) if first else None,
    }


def _describe(episodes: Sequence[Episode]) -> dict[str, float | None]:
    calls = [call for episode in episodes for call in episode.tool_calls]
    count = len(episodes)
    return {
        "reward_mean": sum(episode.reward or 0.0 for episode in episodes) / count,
        "score_mean": sum(episode.score for episode in episodes) / count,
        "turns_mean": sum(len(episode.turns) for episode in episodes) / count,
        "segments_mean": sum(len(episode.segments) for episode in episodes) / count,
        "tool_calls_mean": len(calls) / count,
        "tool_error_share": sum(not call.ok for call in calls) / len(calls) if calls else 0.0,
        **_economy(episodes, len(calls)),
        "sampled_tokens_mean": sum(episode.num_sampled for episode in episodes) / count,
        "truncated_share": sum(episode.stop_reason.truncated for episode in episodes) / count,
        "undecided_share": sum(episode.verdict in UNDECIDED for episode in episodes) / count,
        "seconds_mean": sum(episode.seconds for episode in episodes) / count,
        "tool_seconds_mean": sum(episode.tool_seconds for episode in episodes) / count,
        "grade_seconds_mean": sum(episode.grade_seconds for episode in episodes) / count,
    }


class Totals:
    """Counts over a whole run, resumed attempts included; kept in checkpoints."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.staleness: Counter[int] = Counter()
        self.environments: Counter[str] = Counter()
        """Episodes learned from, by environment."""
        self.initial_s = self.initial_cpu_s = 0.0
        """Wall and processor time of rollouts for initial values."""

    def add_initial_time(self, wall_s: float, cpu_s: float) -> None:
        """Count time that rollouts for initial values took."""
        self.initial_s += wall_s
        self.initial_cpu_s += cpu_s

    def add_episodes(self, episodes: Sequence[Episode], version: int) -> None:
        """Count a batch that was learned from at `version`."""
        for episode in episodes:
            self.staleness[episode.staleness(version)] += 1
            self.values["episodes_learned"] += 1
            self.environments[episode.environment] += 1
            self.values["tokens_learned"] += episode.num_trainable
            self.count_tools(episode)

    def count_tools(self, episode: Episode) -> None:
        """Count the tool calls of an episode."""
        self.values["python_calls"] += len(episode.tool_calls)
        self.values["tool_errors"] += sum(not call.ok for call in episode.tool_calls)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "values": dict(self.values),
            "staleness": {str(k): v for k, v in self.staleness.items()},
            "environments": dict(self.environments),
            "initial_s": [self.initial_s, self.initial_cpu_s],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to saved values."""
        self.values = Counter(state["values"])
        self.staleness = Counter({int(k): v for k, v in state["staleness"].items()})
        self.environments = Counter(state.get("environments", {}))
        self.initial_s, self.initial_cpu_s = state.get("initial_s", (0.0, 0.0))
