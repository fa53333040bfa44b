"""What `agentrl eval` found beside a run, as its page shows it; how two are compared it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.config.secrets import without_secrets

Compare = Callable[[Path, Path], Mapping[str, Any]]
"""Two folders of evaluations to what `agentrl compare --json` prints of them, B less A."""
SHOWN = 200
"""Newest evaluations that a page lists."""
PAIRS = 20
"""Comparisons that a report file holds."""
CHANGES = 50
"""Problems of a comparison, the most changed first."""


def find_evaluations(run: Path) -> dict[str, Path]:
    """Folders of evaluations in `evals` beside the run or its folder, by name, newest first."""
    run = run.resolve()
    found: dict[str, Path] = {}
    for place in (run.parent.parent / "evals", run.parent / "evals", run / "evals"):
        for pattern in ("*/summary.json", "*/*/summary.json"):
            for path in place.glob(pattern):
                found.setdefault(path.parent.relative_to(place).as_posix(), path.parent)
    newest = sorted(found, key=lambda name: (found[name] / "summary.json").stat().st_mtime, reverse=True)
    return {name: found[name] for name in newest[:SHOWN]}


def evaluation_rows(run: Path) -> list[dict[str, Any]]:
    """A row for each evaluation beside a run; those that cannot be read are left out."""
    rows = ((name, folder, _summary(folder)) for name, folder in find_evaluations(run).items())
    return [_row(name, folder, summary, run) for name, folder, summary in rows if "table" in summary]


def _summary(folder: Path) -> Mapping[str, Any]:
    path = folder / "summary.json"
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}  # under way, or damaged


@lru_cache(maxsize=SHOWN)
def _read(path: Path, changed: int) -> Mapping[str, Any]:
    """A summary; `changed` is when it was, so that a page that asks often reads it once."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _row(name: str, folder: Path, summary: Mapping[str, Any], run: Path) -> dict[str, Any]:
    table, policy = _of(summary, "table"), _of(summary, "policy")
    counts, mean = _of(table, "counts"), _of(table, "avg@k")
    weights = str(policy.get("weights") or policy.get("model") or "")
    passes = {k: _of(one, "").get("value") for k, one in _of(table, "pass@k").items()}
    return {
        "name": name,
        "policy": weights,
        "own": _is_of(folder, weights, run),
        "version": _of(summary, "training").get("version"),
        "data": summary.get("data"),
        # Only the same problems in the same environment can be compared.
        "problems_of": [summary.get("data_checksum"), summary.get("environment")],
        "environment": summary.get("environment"),
        "problems": table.get("problems"),
        "k": table.get("k"),
        "mean": mean.get("value"),
        "interval": [_of(mean, "new_problems").get(end) for end in ("low", "high")],
        "pass": passes,
        "failed": counts.get("failed"),
        "truncated": counts.get("truncated"),
        "calls": _of(table, "tools").get("calls_per_episode"),
        "tokens": _of(summary, "effort").get("sampled_tokens_mean"),
        "complete": summary.get("complete"),
        "finished": summary.get("finished"),
        "command": summary.get("command"),
        "decoding": without_secrets(summary.get("decoding")),
    }


def _of(value: Any, name: str) -> Mapping[str, Any]:
    """A table of a summary, the value itself for no name; empty where it is none."""
    found = value.get(name) if name and isinstance(value, Mapping) else value
    return found if isinstance(found, Mapping) else {}


def _is_of(folder: Path, weights: str, run: Path) -> bool:
    """Whether an evaluation is of weights of a run; their path may count from where it was started."""
    places = (Path(weights), *(parent / weights for parent in folder.parents[:4]))
    return bool(weights) and any(place.resolve().is_relative_to(run.resolve()) for place in places)


def pairs(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names (A, B) of what a file compares: each evaluation against the oldest of the same problems."""
    oldest: dict[str, str] = {}
    for row in reversed(rows):
        problems = repr(row["problems_of"])
        if problems in oldest:
            yield oldest[problems], row["name"]
        oldest.setdefault(problems, row["name"])


def comparison(run: Path, a: str, b: str, compare: Compare) -> dict[str, Any] | None:
    """Two evaluations beside a run compared; None where there is none of that name.

    What stands in the way of a comparison is told under `error`.
    """
    found = find_evaluations(run)
    if a not in found or b not in found:
        return None
    try:
        told = compare(found[a], found[b])
        return {"a": a, "b": b, **told, "changes": told["changes"][:CHANGES]}
    except ValueError as error:  # DataError: of other problems, or damaged
        return {"a": a, "b": b, "error": str(error)}
