"""`agentrl runs`: the runs of a folder, newest first, with what each came to."""

from __future__ import annotations

import argparse
from pathlib import Path

from agentrl.report.run_data import duration


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("runs", help="list runs, newest first", allow_abbrev=False)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="that holds them (default: runs)"
    )
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from agentrl.errors import ConfigError
    from agentrl.report.runs import find_runs, run_row

    folders = find_runs(options.folder)
    if not folders:
        raise ConfigError(f"no run below {options.folder}/; name the folder that holds them")
    table = Table("run", "state", "steps", "held-out reward", "time", box=None)
    for folder in folders:
        row = run_row(folder)
        seconds = "" if row["seconds"] is None else duration(row["seconds"])
        cells = (row["name"], "running" if row["running"] else "", str(row["steps"]), row["reward"], seconds)
        table.add_row(*map(Text, cells))
    Console().print(table)
    return 0
