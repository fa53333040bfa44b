"""The page of a run: one HTML file with everything in it, opened from disk or served.

The look is `page.css`, the drawing `page.js`; both are put into `page.html` with the data. No network,
no fonts, no libraries.
"""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from agentrl.report.run_data import read_run
from agentrl.storage.durable import write_file


@cache
def _asset(name: str) -> str:
    return (files("agentrl.report") / name).read_text(encoding="utf-8")


def render_page(run: dict[str, Any], *, poll: str = "") -> str:
    """The page as text.

    Args:
        run: from `read_run`.
        poll: address that gives newer data as JSON, for a page that is served; empty for a file.
    """
    # "<" inside a script could end it: recorded episodes hold text that a model wrote.
    data = json.dumps({"run": run, "poll": poll}, allow_nan=False).replace("<", "\\u003c")
    page = _asset("page.html")
    for mark, text in (
        ("@TITLE@", html.escape(f"{run['name']} - agentrl")),
        ("@STYLE@", _asset("page.css")),
        ("@SCRIPT@", _asset("page.js")),
        ("@DATA@", data),
    ):
        page = page.replace(mark, text, 1)
    return page


def write_report(path: Path) -> Path:
    """Write `report.html` of the run in `path` and return where it is."""
    report = path / "report.html"
    write_file(report, render_page(read_run(path)).encode(), "report")
    return report
