"""The page of a run: one HTML file with everything in it, opened from disk or served.

Look, drawing and libraries are files of `static/`; they are put into `page.html` as they are, with the data.
The page asks no network for anything, and its policy forbids it to.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from agentrl.report.evaluations import Compare
from agentrl.report.report_data import report_parts
from agentrl.storage.durable import write_file

SCRIPTS = (
    "vendor/uPlot.iife.min.js", "vendor/temml.min.js", "dom.js", "source.js", "charts.js", "overview.js",
    "episodes.js", "conversation.js", "tokens.js", "prompts.js", "timeline.js", "evaluations.js", "tables.js",
    "app.js",
)  # fmt: skip
STYLES = ("vendor/uPlot.min.css", "page.css")


@cache
def _asset(name: str) -> str:
    return (files("agentrl.report") / "static" / name).read_text(encoding="utf-8")


@cache
def _scripts() -> str:
    return "\n".join(f"<script>\n{_asset(name)}</script>" for name in SCRIPTS)


@cache
def policy() -> str:
    """What the page may do: run these scripts, ask its own server, and nothing else."""
    digests = [hashlib.sha256(f"\n{_asset(name)}".encode()).digest() for name in SCRIPTS]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def script_data(identity: str, value: Any) -> str:
    """Plain values as a block of the page; text in them cannot end the block."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # "<" inside a script could end it: recorded episodes hold text that a model wrote.
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{html.escape(identity, quote=True)}">{text}</script>'


def render_page(name: str, blocks: Iterable[str]) -> str:
    """The page as text.

    Args:
        name: for its title.
        blocks: from `script_data`; the one called `data` says where the page has its data from.
    """
    page = _asset("page.html")
    for mark, text in (
        ("@POLICY@", policy()),
        ("@TITLE@", html.escape(f"{name} - agentrl")),
        ("@STYLE@", "\n".join(_asset(style) for style in STYLES)),
        ("@SCRIPTS@", _scripts()),
        ("@DATA@", "\n".join(blocks)),
    ):
        page = page.replace(mark, text, 1)
    return page


def live_page(name: str, reference: Mapping[str, Any] | None = None) -> str:
    """The page that asks its server."""
    return render_page(name, [script_data("data", {"mode": "live", "reference": reference})])


def write_report(
    path: Path,
    others: Sequence[Path] = (),
    compare: Compare | None = None,
    reference: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` of the run in `path` and return where it is.

    Args:
        others: runs whose curves are laid over.
        compare: how two evaluations beside the run are compared; without it none are.
        reference: a band to draw behind the curves, from `references.find_reference`.
    """
    report = path / "report.html"
    blocks = (script_data(name, value) for name, value in report_parts(path, others, compare, reference))
    write_file(report, render_page(path.resolve().name, blocks).encode(errors="replace"), "report")
    return report
