"""`agentrl view`: the page of a run, served while the run goes on or written to its folder."""

from __future__ import annotations

import argparse
import os
import webbrowser
from pathlib import Path
from typing import Any

from agentrl.cli.command import add_command
from agentrl.config.ranges import Port, number

EPILOG = """\
examples:
  agentrl view                    the newest run below runs/
  agentrl view runs/001
  agentrl view runs/001 --write   only write runs/001/report.html, which opens from disk
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "view", "look at a run in the browser", EPILOG)
    parser.add_argument(
        "run", nargs="?", type=Path, help="folder of a run; the newest below runs/ by default"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine only)"
    )
    parser.add_argument("--port", type=number(Port), default=0, help="port; 0 takes a free one")
    parser.add_argument("--write", action="store_true", help="write report.html and serve nothing")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or write it."""
    from agentrl.report import write_report
    from agentrl.report.server import make_server

    folder = find_run(options.run)
    if options.write:
        print(write_report(folder))
        return 0
    with make_server(folder, options.host, options.port) as server:
        host, port = server.server_address[:2]
        address = f"http://{host!s}:{port}/"
        print(f"{folder}: {address} (Ctrl-C ends)", flush=True)
        if not options.no_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def find_run(path: Path | None, directory: Path = Path("runs")) -> Path:
    """The folder of a run.

    Raises:
        ConfigError: there is none.
    """
    from agentrl.errors import ConfigError

    if path is not None:
        if not (path / "run.json").exists() and not (path / "metrics.jsonl").exists():
            raise ConfigError(f"{path} holds no run (it has neither run.json nor metrics.jsonl)")
        return path
    runs = sorted(directory.glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise ConfigError(f"no run below {directory}/; name the folder of one: agentrl view RUN")
    return runs[-1].parent
