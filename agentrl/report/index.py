"""An index over the files of a run: one SQLite file that answers what a page asks.

It is built from what is there and grows with the run: each call of `update` reads only what was appended
since the last one. It can be deleted at any time. Half-written and damaged lines are left out and counted.
It knows nothing of pages.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from agentrl.report.index_rows import CREDIT, EPISODE, Upsert, credit_rows, episode_row, ledger_statements
from agentrl.report.record_files import RecordFiles, lines_of

FORMAT = 4
NAME = ".view.sqlite"
CHUNK = 2000
"""Records between two commits: a page may ask while a large run is read for the first time."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value);
CREATE TABLE IF NOT EXISTS files(number INTEGER PRIMARY KEY, position INTEGER, packed INTEGER);
CREATE TABLE IF NOT EXISTS episodes(
  id TEXT PRIMARY KEY, kind TEXT, dispatch INTEGER, prompt TEXT, environment TEXT,
  state TEXT, reason TEXT, start_version INTEGER, version INTEGER, place INTEGER,
  reward REAL, score REAL, baseline REAL, count REAL, advantage REAL,
  stop TEXT, error TEXT, turns INTEGER, calls INTEGER, call_errors INTEGER,
  tokens INTEGER, sampled INTEGER, segments INTEGER, seconds REAL, tool_seconds REAL,
  grade_seconds REAL, ended REAL,
  verdict TEXT, answer TEXT, said TEXT, file INTEGER, position INTEGER);
CREATE INDEX IF NOT EXISTS by_prompt ON episodes(prompt, dispatch);
CREATE INDEX IF NOT EXISTS by_version ON episodes(version, place);
CREATE INDEX IF NOT EXISTS by_dispatch ON episodes(dispatch);
CREATE INDEX IF NOT EXISTS by_state ON episodes(state, reason);
"""


class RunIndex:
    """The index of the run in one folder.

    Args:
        folder: of the run; the index is a hidden file in it, or in memory where that cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = RecordFiles(folder / "episodes")
        self._lock = threading.Lock()
        self._path = str(folder / NAME)
        try:
            self._open()
        except sqlite3.Error:
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()
            try:
                self._open()  # it was damaged
            except sqlite3.Error:  # a folder that is read only, or a full disk
                self._path = ":memory:"
                self._open()

    def _open(self) -> None:
        self._base = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode=TRUNCATE")
        self._base.execute("PRAGMA synchronous=OFF")  # made again from the files of the run
        if self._base.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
            self._clear()

    def _clear(self) -> None:
        self._base.execute("BEGIN IMMEDIATE")
        for table in ("facts", "files", "episodes"):
            self._base.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in SCHEMA.split(";"):
            self._base.execute(statement)
        self._base.execute(f"PRAGMA user_version={FORMAT}")
        self._base.execute("COMMIT")

    def query(self, text: str, values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a SELECT."""
        with self._lock:
            cursor = self._base.execute(text, tuple(values))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def record(self, identity: str) -> dict[str, Any] | None:
        """The recorded episode as plain values; None where it is not on disk (any more)."""
        found = self.query("SELECT file, position FROM episodes WHERE id = ?", (identity,))
        if not found or found[0]["file"] is None:
            return None
        return self._files.read(identity, found[0]["file"], found[0]["position"])

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._base.close()

    # ------------------------------------------------------------------ growing

    def update(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Read what was appended to the run since the last call; returns whether anything was.

        Args:
            stop: asked between pieces; a true answer leaves the rest for the next call.
        """
        if self._shrunk():
            self._clear()
        changed = False
        for piece in self._pieces():
            with self._lock, self._transaction():
                for text, rows in piece:
                    self._base.executemany(text, rows)
            changed = True
            if stop():
                break
        return changed

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    def _shrunk(self) -> bool:
        """Whether a file is shorter than what was read of it: it is another run's, or it was cut."""
        return any(
            self._fact(name) > (path.stat().st_size if path.exists() else 0)
            for name, path in (
                ("ledger", self.folder / "ledger.jsonl"),
                ("credit", self.folder / "credit.jsonl"),
            )
        )

    def _fact(self, name: str) -> int:
        found = self.query("SELECT value FROM facts WHERE name = ?", (name,))
        return int(found[0]["value"]) if found else 0

    def _pieces(self) -> Iterator[list[Upsert]]:
        yield from self._lines("ledger", ledger_statements)
        yield from self._lines("credit", lambda lines: [(CREDIT, credit_rows(lines))])
        yield from self._episodes()

    def _lines(
        self, name: str, read: Callable[[list[dict[str, Any]]], list[Upsert]]
    ) -> Iterator[list[Upsert]]:
        lines: list[dict[str, Any]] = []
        start = end = self._fact(name)
        for end, line in lines_of(self.folder / f"{name}.jsonl", start):
            if line is not None:
                lines.append(line)
            if len(lines) >= CHUNK:
                yield [*read(lines), _set_fact(name, end)]
                lines = []
        if end > start:
            yield [*read(lines), _set_fact(name, end)]

    def _episodes(self) -> Iterator[list[Upsert]]:
        known = {row["number"]: row for row in self.query("SELECT number, position, packed FROM files")}
        for number, packed, start in self._files.unread(known):
            rows: list[tuple[Any, ...]] = []
            damaged, end, begin = 0, start, start
            for begin, end, record in self._files.records(number, start):
                row = None if record is None else episode_row(record, number, begin)
                damaged += row is None
                rows += [row] if row is not None else []
                if len(rows) >= CHUNK:
                    yield [(EPISODE, rows), _set_file(number, end, packed), _add_damaged(damaged)]
                    rows, damaged = [], 0
            if end > start or number not in known or known[number]["packed"] != packed:
                yield [(EPISODE, rows), _set_file(number, end, packed), _add_damaged(damaged)]


def _set_fact(name: str, value: int) -> Upsert:
    return "INSERT OR REPLACE INTO facts(name, value) VALUES (?, ?)", [(name, value)]


def _add_damaged(count: int) -> Upsert:
    text = (
        "INSERT INTO facts(name, value) VALUES ('damaged', ?) "
        "ON CONFLICT(name) DO UPDATE SET value = value + excluded.value"
    )
    return text, [(count,)]


def _set_file(number: int, position: int, packed: bool) -> Upsert:
    text = "INSERT OR REPLACE INTO files(number, position, packed) VALUES (?, ?, ?)"
    return text, [(number, position, int(packed))]
