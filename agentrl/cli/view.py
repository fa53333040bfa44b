"""`agentrl view`: the page of a run, served while the run goes on or written to its folder."""

from __future__ import annotations

import argparse
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from agentrl.cli.command import add_command
from agentrl.config.ranges import Port, number
from agentrl.errors import ConfigError

EPILOG = """\
examples:
  agentrl view                    the runs below runs/, the newest one first
  agentrl view runs/001
  agentrl view runs/001 --with runs/002 runs/003     with others laid over
  agentrl view runs/001 --reference demo    with the band of five runs of the demo behind it
  agentrl view runs/001 --write   only write runs/001/report.html, which opens from disk
"""

OTHERS = 3
"""Runs that a page lays over the first (as in static/app.js)."""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "view", "look at a run in the browser", EPILOG)
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        help="folder of a run, or of runs; runs/ by default",
        metavar="RUN_OR_FOLDER",
    )
    parser.add_argument("--port", type=number(Port), default=0, help="port; 0 takes a free one")
    parser.add_argument(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help=f"runs to lay over the first, at most {OTHERS}",
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="a band to draw behind the curves: a name (demo, ...), a reference file, or a folder of runs",
    )
    parser.add_argument("--write", action="store_true", help="write report.html and serve nothing")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or write it."""
    from agentrl.cli.compare import comparison_values
    from agentrl.report import write_report
    from agentrl.report.references import find_reference
    from agentrl.report.server import make_server

    folder = find_run(options.run) if options.write or options.run else find_folder()
    if len(options.others) > OTHERS:
        raise ConfigError(f"--with takes at most {OTHERS} runs: more curves cannot be told apart")
    others = [find_run(other) for other in options.others]
    check_names([folder, *others])
    reference = None if options.reference is None else find_reference(options.reference)
    if options.write:
        print(write_report(folder, others, comparison_values, reference))
        return 0
    for other in others:
        if other.resolve().parent != folder.resolve().parent:
            raise ConfigError(
                f"--with {other} must lie beside {folder} (or use --write, which takes any run)"
            )
    names = {"run": folder.resolve().name, "with": "/".join(other.resolve().name for other in others)}
    served, query = (folder.parent, f"#/overview?{urlencode(names, safe='/')}") if others else (folder, "")
    with make_server(served, options.port, comparison_values, reference) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/{query}"
        print(f"{served}: {address} (Ctrl-C ends)", flush=True)
        if not options.no_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def check_names(runs: Sequence[Path]) -> None:
    """Raises ConfigError where two runs have one name, by which the page knows them."""
    names = [run.resolve().name for run in runs]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise ConfigError(f"--with {runs[at]}: another run of the page is called {name!r} too")


def find_folder(directory: Path = Path("runs")) -> Path:
    """The folder of runs.

    Raises:
        ConfigError: there is no run in it.
    """
    find_run(None, directory)
    return directory


def find_run(path: Path | None, directory: Path = Path("runs")) -> Path:
    """The folder of a run, or of runs; of none given the newest run.

    Raises:
        ConfigError: there is none.
    """
    from agentrl.report.runs import find_runs

    runs = find_runs(directory if path is None else path)
    if not runs and path is not None:
        raise ConfigError(f"{path} holds no run (it has neither run.json nor metrics.jsonl)")
    if not runs:
        raise ConfigError(f"no run below {directory}/; name the folder of one: agentrl view RUN")
    return runs[0] if path is None else path
