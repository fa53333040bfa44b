"""The table of several tasks, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ESTIMANDS = ("new_problems", "same_problems")


def suite_summary(summaries: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """The table of several tasks and the plain mean over them.

    The mean's intervals come from those of the tasks, which are independent: the squared distances between a
    task's value and its bounds add up (the method of variance estimates recovery, Zou and Donner 2008).
    """
    tasks = [
        {
            "task": summary["task"],
            "folder": str(folder),
            "problems": summary["table"]["problems"],
            "samples": summary["samples"],
            "failed": summary["table"]["counts"]["failed"],
            "complete": summary["complete"],
            "avg@k": summary["table"].get("avg@k"),
        }
        for summary, folder in zip(summaries, folders, strict=True)
    ]
    entries = [task["avg@k"] for task in tasks]
    return {"tasks": tasks, "mean": None if None in entries else mean_of(entries)}


def mean_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of independent estimates with intervals, each task counted once."""
    value = math.fsum(entry["value"] for entry in entries) / len(entries)
    mean: dict[str, Any] = {"value": value}
    for estimand in ESTIMANDS:
        below = math.fsum((entry["value"] - entry[estimand]["low"]) ** 2 for entry in entries)
        above = math.fsum((entry[estimand]["high"] - entry["value"]) ** 2 for entry in entries)
        mean[estimand] = {
            "low": value - math.sqrt(below) / len(entries),
            "high": value + math.sqrt(above) / len(entries),
            "method": "mover",
        }
    return mean
