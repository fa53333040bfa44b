"""Several tasks in one command: their descriptions, and their mean.

A file of tasks is TOML with one table a task; its keys are options of `agentrl eval`::

    [physics]
    data = "physics.jsonl"
    map = {problem = "question"}
    tolerance = 0.01

Knows nothing of policies and loops.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.evaluation.options import Experiment

_KEYS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    # key of the file: field of Experiment, type
    "data": ("data", str),
    "map": ("columns", dict),
    "limit": ("limit", int),
    "samples": ("samples", int),
    "env": ("env", str),
    "env_settings": ("env_settings", dict),
    "tools": ("tools", bool),
    "system": ("system", str),
    "prompt": ("prompt", str),
    "shots": ("shots", int),
    "shots_data": ("shots_data", str),
    "choices": ("choices", str),
    "grader": ("grader", str),
    "tolerance": ("tolerance", (int, float)),
    "conventions": ("conventions", dict),
    "by": ("by", (str, list)),
}
ESTIMANDS = ("new_problems", "same_problems")


def experiments_of(base: Experiment, sources: Sequence[str], prompts: Sequence[str] = ()) -> list[Experiment]:
    """The experiments of a command.

    Args:
        base: what holds for all; its `out` is the folder of one, and of several their parent.
        sources: names of benchmarks, files of rows, or files of tasks (`.toml`).
        prompts: variants of the prompt; each is played on every source.

    Raises:
        ConfigError: a file of tasks that cannot be used, or two tasks of one name.
    """
    found: list[Experiment] = []
    for source in sources:
        if source.endswith(".toml"):
            found += [_from_table(base, name, table) for name, table in _tables(source).items()]
        else:
            found.append(replace(base, data=source))
    if prompts:
        several = len(prompts) > 1
        found = [
            replace(one, prompt=prompt, name=f"{one.task_name}-prompt{number}" if several else one.name)
            for one in found
            for number, prompt in enumerate(prompts, 1)
        ]
    if len(found) == 1:
        return found
    names = [one.task_name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tasks are called {twice!r}; name them in a file of tasks")
    return [replace(one, out=base.out / one.task_name.replace("/", "-").replace(":", "-")) for one in found]


def _tables(source: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--data {source}: {error}") from error
    loose = next((key for key, value in tables.items() if not isinstance(value, dict)), None)
    if loose is not None or not tables:
        raise ConfigError(f'{source}: want one table a task, such as [mine] with data = "rows.jsonl"')
    return tables


def _from_table(base: Experiment, name: str, table: Mapping[str, Any]) -> Experiment:
    changes: dict[str, Any] = {"name": name}
    for key, value in table.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, list(_KEYS), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"
            raise ConfigError(f"task [{name}]: unknown key {key!r} ({hint})")
        field, kind = _KEYS[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"task [{name}]: {key} = {value!r} is of the wrong type")
        changes[field] = value
    if "data" not in changes:
        raise ConfigError(f"task [{name}] needs data: a benchmark or a file")
    if "by" in changes:
        changes["by"] = tuple([changes["by"]] if isinstance(changes["by"], str) else changes["by"])
    settings = dict(changes.pop("env_settings", base.env_settings))
    if "system" in changes:
        settings["system_prompt"] = changes.pop("system")
    return replace(base, env_settings=settings, **changes)


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
