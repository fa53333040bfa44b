"""The runs below a folder, newest first, with what each came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.report.run_data import duration, is_running
from agentrl.storage.durable import read_lines


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one."""
    return (folder / "run.json").exists() or (folder / "metrics.jsonl").exists()


def find_runs(path: Path) -> list[Path]:
    """Folders of runs: the one that `path` is, or those right below it, newest first."""
    if is_run(path):
        return [path]
    try:
        found = [folder for folder in path.iterdir() if folder.is_dir() and is_run(folder)]
    except OSError:
        return []
    return sorted(found, key=_changed, reverse=True)


def _changed(folder: Path) -> float:
    times = [
        path.stat().st_mtime for path in (folder / "metrics.jsonl", folder / "run.json") if path.exists()
    ]
    return max(times, default=0.0)


def run_row(folder: Path) -> dict[str, Any]:
    """Name, state, steps, scores and time of a run, from its newest rows only."""
    first = last = step = None
    for row in _tail(folder / "metrics.jsonl"):
        if row.get("kind") == "eval":
            last = row
        elif row.get("kind") == "step":
            step = row
    for row in read_lines(folder / "metrics.jsonl", end=20_000, skip_damaged=True):
        if row.get("kind") == "eval":
            first = row
            break
    steps = (step or {}).get("version") or 0
    rewards = [row.get("reward_mean") for row in (first, last) if row is not None]
    reward = " -> ".join(f"{value:.3f}" for value in rewards if isinstance(value, int | float))
    seconds = (step or {}).get("time_s")
    return {
        "name": folder.name,
        "running": is_running(folder),
        "steps": steps,
        "reward": reward,
        "changed": _changed(folder),
        "seconds": seconds,
        "sentence": f"{steps} steps"
        + (f", {duration(seconds)}" if seconds else "")
        + (f", {reward}" if reward else ""),
    }


def _tail(path: Path, size: int = 60_000) -> list[dict[str, Any]]:
    """The rows in the last bytes of a file."""
    try:
        start = max(0, path.stat().st_size - size)
        if start:
            with path.open("rb") as file:
                file.seek(start)
                start += len(file.readline())
    except OSError:
        return []
    return list(read_lines(path, start, skip_damaged=True))
