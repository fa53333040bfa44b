"""Serves the page of the runs in a folder to this machine only, with the standard library. Read only."""

from __future__ import annotations

import gzip
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from agentrl.errors import ConfigError
from agentrl.report.evaluations import Compare, comparison, find_evaluations
from agentrl.report.page import live_page
from agentrl.report.run_data import is_running
from agentrl.report.run_view import RunView
from agentrl.report.runs import find_runs, run_row

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PATIENCE_S = 0.8
"""How long the first answer waits for an index; a large run is read on behind the page."""


class Runs:
    """The runs that a server shows: opened when they are asked for, and followed from then on.

    Args:
        path: of a run, or of a folder of runs.
        compare: how two evaluations beside a run are compared; without it none are.
        reference: a band that the page draws behind the curves.
    """

    def __init__(
        self, path: Path, compare: Compare | None = None, reference: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path.resolve()
        self.compare = compare
        self.reference = reference
        self._views: dict[str, RunView] = {}
        self._ready: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def folders(self) -> dict[str, Path]:
        """Names and folders, newest first."""
        return {folder.name: folder for folder in find_runs(self.path)}

    def view(self, name: str) -> RunView | None:
        """A run by its name; None where there is none."""
        folder = self.folders().get(name)
        if folder is None:
            return None
        with self._lock:
            if name not in self._views:
                self._views[name], self._ready[name] = RunView(folder), threading.Event()
                thread = threading.Thread(
                    target=self._follow, args=(name,), name="agentrl-index", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._ready[name].wait(PATIENCE_S)
        return self._views[name]

    def indexing(self, name: str) -> bool:
        """Whether a run is still being read for the first time."""
        return not self._ready[name].is_set()

    def _follow(self, name: str) -> None:
        view = self._views[name]
        while not self._closed.is_set():
            try:
                view.index.update(self._closed.is_set)
            except (OSError, sqlite3.Error) as error:  # a full disk, say: the page shows what was read so far
                logger.warning("%s: the index is not up to date: %s", view.index.folder, error)
            self._ready[name].set()
            self._closed.wait(1.5)

    def close(self) -> None:
        """Stop following."""
        self._closed.set()
        for thread in self._threads:
            thread.join(10)
        for view in self._views.values():
            view.close()


class ViewServer(ThreadingHTTPServer):
    """Answers `/` and `/api/...`; refuses every name of a host but those of this machine."""

    daemon_threads = True

    def __init__(self, runs: Runs, port: int) -> None:
        self.runs = runs
        super().__init__((HOST, port), _Handler)

    def server_close(self) -> None:
        """Stop following the runs, and free the port."""
        self.runs.close()
        super().server_close()

    def allowed(self, host: str) -> bool:
        """Whether a Host header names this server: another name may be a page that wants to read runs."""
        name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "")
        return name in ("127.0.0.1", "localhost", "[::1]") and port in ("", str(self.server_address[1]))


def make_server(
    path: Path, port: int, compare: Compare | None = None, reference: Mapping[str, Any] | None = None
) -> ViewServer:
    """A server of one run or of a folder of runs, at this machine's own address.

    Raises:
        ConfigError: the port cannot be had.
    """
    try:
        return ViewServer(Runs(path, compare, reference), port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {HOST}:{port}: {error.strerror}; choose another --port"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer  # pyrefly: ignore[bad-override-mutable-attribute]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if not self.server.allowed(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers to its own address only")
            return
        address = urlsplit(self.path)
        if address.path == "/":
            self._send("text/html", live_page(self.server.runs.path.name, self.server.runs.reference))
            return
        answer = ANSWERS.get(address.path.removeprefix("/api/")) if address.path.startswith("/api/") else None
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
            return
        value = answer(self.server.runs, dict(parse_qsl(address.query)))
        if value is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such run or episode")
        else:
            self._send("application/json", json.dumps(value, allow_nan=False))

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send("text/plain", text, status)

    def _send(self, kind: str, text: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        if len(body) > 10_000 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A page that asks every few seconds is not worth a line each time."""


Asked = dict[str, str]


def _of_run(answer: Callable[[RunView, Asked], Any]) -> Callable[[Runs, Asked], Any]:
    def of_run(runs: Runs, asked: Asked) -> Any:
        view = runs.view(asked.get("run", ""))
        return None if view is None else answer(view, asked)

    return of_run


def _runs(runs: Runs, asked: Asked) -> Any:
    return [run_row(folder) for folder in runs.folders().values()]


def _overview(runs: Runs, asked: Asked) -> Any:
    name = asked.get("run", "")
    view = runs.view(name)
    return None if view is None else view.overview() | {"indexing": runs.indexing(name)}


def _stamp(runs: Runs, asked: Asked) -> Any:
    """What changes when a page has something new to show."""
    name = asked.get("run", "")
    folder, view = runs.folders().get(name), runs.view(name)
    if folder is None or view is None:
        return None
    evaluated = (path / "summary.json" for path in find_evaluations(folder).values())
    paths = (folder / "metrics.jsonl", folder / "config.toml", *evaluated)
    marks: list[Any] = [path.stat().st_size for path in paths if path.exists()]
    if is_running(folder) or runs.indexing(name):
        (count,) = view.index.query("SELECT count(*) AS n FROM episodes")
        marks += [runs.indexing(name), count["n"]]
    return {"stamp": repr(marks)}


def _comparison(runs: Runs, asked: Asked) -> Any:
    view = runs.view(asked.get("run", ""))
    if view is None or runs.compare is None:
        return None
    return comparison(view.folder, asked.get("a", ""), asked.get("b", ""), runs.compare)


def _timeline(view: RunView, asked: Asked) -> Any:
    try:
        return view.timeline(float(asked.get("first", "")), float(asked.get("last", "")))
    except ValueError:
        return None


ANSWERS: dict[str, Callable[[Runs, Asked], Any]] = {
    "runs": _runs,
    "overview": _overview,
    "stamp": _stamp,
    "episodes": _of_run(lambda view, asked: view.episodes(asked)),
    "episode": _of_run(lambda view, asked: view.episode(asked.get("id", ""))),
    "prompts": _of_run(lambda view, asked: view.prompts(asked)),
    "prompt": _of_run(lambda view, asked: view.prompt(asked.get("prompt", ""))),
    "timeline": _of_run(_timeline),
    "comparison": _comparison,
}
