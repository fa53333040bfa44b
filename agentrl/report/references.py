"""Bands to lay a run's curves over: what several runs of the same settings came to, step by step.

A reference is a JSON file with the curves of each run; the band (lowest, median, highest) is worked out when
it is read. Some ship with the package and go by name. A folder of runs serves as well as a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from statistics import median
from typing import Any

from agentrl.errors import ConfigError
from agentrl.report.run_data import read_run
from agentrl.report.runs import find_runs
from agentrl.storage.durable import write_file

FORMAT = 1
AXES = ("version", "episodes_total", "tokens_total")
"""Columns that a curve may be drawn across. Wall time is none: it is of the machine."""
CURVES = (
    "score_mean", "baseline_mean", "advantage_std", "grad_norm", "entropy", "kl_reference", "tool_calls_mean",
    "turns_mean", "sampled_tokens_mean", "tool_error_share", "truncated_share", "brier",
)  # fmt: skip
"""Columns that a reference keeps: those that say the same on every machine."""


def known_references() -> dict[str, Traversable]:
    """The references that ship with the package, by name."""
    folder = files("agentrl.report") / "references"
    return {file.name.removesuffix(".json"): file for file in folder.iterdir() if file.name.endswith(".json")}


def find_reference(name: str) -> dict[str, Any]:
    """The band of a reference.

    Args:
        name: of a reference that ships with the package, or the path of a reference file or a folder of runs.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    known, path = known_references(), Path(name)
    if path.is_dir() and (runs := find_runs(path)):
        return band(collect(runs, path.resolve().name))
    if name not in known and not path.is_file():
        raise ConfigError(
            f"there is no reference {name!r}; known: {', '.join(sorted(known))} "
            "(or the path of a reference file, or of a folder of runs)"
        )
    file = path if path.is_file() else known[name]
    try:
        return band(json.loads(file.read_text(encoding="utf-8")))
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ConfigError(
            f"{file} is no reference of format {FORMAT}, or is damaged: {error!r:.200}"
        ) from error


def collect(runs: Sequence[Path], name: str, note: str = "") -> dict[str, Any]:
    """A reference, as it is written, from runs of the same settings.

    Args:
        runs: their folders.
        name: that a page calls it by.
        note: how the runs were made.

    Raises:
        ConfigError: a run took no step.
    """
    found = []
    for folder in runs:
        run = read_run(folder)
        if not run["columns"]["version"]:
            raise ConfigError(f"{folder} took no step: it cannot be part of a reference")
        kept = {key: run["columns"][key] for key in (*AXES, *CURVES) if key in run["columns"]}
        evaluations = [[row["version"], row["reward_mean"]] for row in run["evaluations"]]
        found.append({"columns": kept, "evaluations": evaluations})
    return {"format": FORMAT, "name": name, "note": note, "runs": found}


def write_reference(reference: Mapping[str, Any], out: Path) -> None:
    """Write a reference that was collected."""
    write_file(out, (json.dumps(reference, separators=(",", ":")) + "\n").encode(), "reference")


def band(reference: Mapping[str, Any]) -> dict[str, Any]:
    """Lowest, median and highest of each curve at each version, over the runs that reached it.

    Returns:
        `axes` and `curves`, lists of one length, and a sentence; of the axes but `version`, the medians.

    Raises:
        ValueError, TypeError, KeyError: it is none of this format.
    """
    if reference["format"] != FORMAT or not reference["runs"]:
        raise ValueError("of another format, or without runs")
    runs = [_by_version(run["columns"]) for run in reference["runs"]]
    versions = sorted({version for run in runs for version in run})
    if not all(isinstance(version, int) for version in versions):
        raise TypeError("a version is no whole number")
    names = dict.fromkeys(name for run in reference["runs"] for name in run["columns"])

    def values(name: str, version: int) -> list[float]:
        found = (run[version].get(name) for run in runs if version in run)
        numbers = [float(value) for value in found if value is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} is not finite at version {version}")
        return numbers

    def curve(name: str, of: Any) -> list[float | None]:
        return [of(some) if (some := values(name, version)) else None for version in versions]

    return {
        "name": str(reference["name"]),
        "sentence": _sentence(reference),
        "axes": {"version": versions} | {name: curve(name, median) for name in AXES[1:] if name in names},
        "curves": {
            name: {"low": curve(name, min), "middle": curve(name, median), "high": curve(name, max)}
            for name in names
            if name not in AXES
        },
    }


def _by_version(table: Mapping[str, Sequence[Any]]) -> dict[int, dict[str, Any]]:
    rows = zip(*table.values(), strict=True)
    return {row["version"]: row for row in (dict(zip(table, values, strict=True)) for values in rows)}


def _sentence(reference: Mapping[str, Any]) -> str:
    """What the runs came to on held-out prompts, in words."""
    runs = reference["runs"]
    ends = [
        (run["evaluations"][0][1], run["evaluations"][-1][1]) for run in runs if len(run["evaluations"]) > 1
    ]
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    text = f"Reference {reference['name']} ({count})"
    if ends:
        (first, last) = (f"{min(some):.2f} to {max(some):.2f}" for some in zip(*ends, strict=True))
        text += f": held-out reward {first} at first, {last} at the end"
    return f"{text}. {reference.get('note') or ''}".rstrip()
