"""`agentrl compare`: compare two evaluations problem by problem."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cli.command import add_command
from agentrl.config.ranges import Number, number

if TYPE_CHECKING:
    from agentrl.evaluation.comparison import Comparison


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(
        subparsers,
        "compare",
        "compare two evaluations problem by problem",
        description="Pairs two results of `agentrl eval` by problem: difference, intervals, exact test.",
    )
    parser.add_argument("a", type=Path, help="folder of an evaluation")
    parser.add_argument("b", type=Path, help="folder of another one, of the same data")
    parser.add_argument("--shown", type=number(Number), default=10, help="problems listed")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Compare; of two folders of several tasks, each task that both have."""
    from agentrl.evaluation.results import task_folders

    names = [
        folder.name
        for folder in task_folders(options.a)
        if folder != options.a and (options.b / folder.name / "results.jsonl").exists()
    ]
    if not names:
        return _compare(options)
    for name in names:
        print("" if name == names[0] or options.json else "\n", end="")
        _compare(argparse.Namespace(**{**vars(options), "a": options.a / name, "b": options.b / name}))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from agentrl.evaluation.results import read_rows, read_summary
    from agentrl.evaluation.tables import comparison_table

    if options.json:
        print(json.dumps(comparison_values(options.a, options.b), indent=2))
        return 0
    summaries = read_summary(options.a), read_summary(options.b)
    problems = {row["id"]: str(row.get("problem", "")) for row in read_rows(options.a) if options.a.is_dir()}
    names = (str(options.a), str(options.b))
    comparison = _comparison(options.a, options.b)
    print(comparison_table(comparison, names, options.shown, summaries, problems))
    return 0


def comparison_values(a: Path, b: Path) -> dict[str, Any]:
    """B less A as plain values, with what the training behind each cost.

    Raises:
        DataError: they have no problem in common, or other answers to one.
    """
    from agentrl.evaluation.results import read_summary

    training = {name: read_summary(path).get("training", {}) for name, path in (("a", a), ("b", b))}
    return {**_comparison(a, b).to_json(), "training": training}


def _comparison(a: Path, b: Path) -> Comparison:
    from agentrl.evaluation.comparison import compare
    from agentrl.evaluation.results import by_problem, read_records
    from agentrl.evaluation.statistics.estimators import ks_up_to

    records = read_records(a), read_records(b)
    least = min(
        (len(rows) for one in records for rows in by_problem(r for r in one if not r.failed).values()),
        default=0,
    )
    return compare(*records, ks=ks_up_to(least))
