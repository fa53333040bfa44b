"""Answers to what a page asks of one run, as plain JSON: lists, episodes, prompts, reasons, times."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

from agentrl.errors import DataError
from agentrl.report.episode_view import episode_view
from agentrl.report.evaluations import evaluation_rows
from agentrl.report.index import RunIndex
from agentrl.report.run_data import read_run
from agentrl.report.vocabulary import Vocabulary, find_vocabulary
from agentrl.storage.steps import StepFiles, StepRecord

PAGE = 100
"""Rows of a list that are sent at once."""
STEPS_CACHED = 2

SORTS = (
    "dispatch", "version", "reward", "score", "advantage", "baseline", "tokens", "sampled", "turns", "calls",
    "call_errors", "seconds", "tool_seconds",
)  # fmt: skip
PROMPT_SORTS = ("attempts", "score", "value", "draws", "failed", "newest", "spread", "prompt")
_PROMPTS = """
SELECT prompt, max(environment) AS environment, count(*) AS draws, count(reward) AS attempts,
  avg(score) AS score,
  sum(state IN ('learned', 'discarded', 'evaluated')) AS folds, sum(state = 'failed') AS failed,
  max(version) AS newest, max(advantage) - min(advantage) AS spread,
  (SELECT baseline FROM episodes AS last WHERE last.prompt = episodes.prompt AND baseline IS NOT NULL
   ORDER BY version DESC LIMIT 1) AS value
FROM episodes WHERE prompt IS NOT NULL {where} GROUP BY prompt"""


class RunView:
    """What can be seen of the run in one folder.

    Args:
        folder: of the run; it may be written meanwhile, half written or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = RunIndex(folder)
        self._steps: OrderedDict[int, StepRecord | None] = OrderedDict()
        self._vocabulary: Vocabulary | None = None

    def close(self) -> None:
        """Close the index; idempotent."""
        self.index.close()

    def overview(self) -> dict[str, Any]:
        """Curves, health, evaluations, settings: everything that is of the run as a whole."""
        counted = self.index.query(
            "SELECT environment, count(*) AS n FROM episodes GROUP BY environment ORDER BY 1"
        )
        facts = {row["name"]: row["value"] for row in self.index.query("SELECT name, value FROM facts")}
        return {
            **read_run(self.folder),
            "episodes": sum(row["n"] for row in counted),
            "episode_environments": [row["environment"] for row in counted if row["environment"]],
            "damaged": facts.get("damaged", 0),
            "reasons": self.reasons(),
            "saved": evaluation_rows(self.folder),
        }

    # ------------------------------------------------------------------ episodes

    def episodes(self, asked: dict[str, str]) -> dict[str, Any]:
        """One page of the list of episodes.

        Args:
            asked: `sort`, `order`, `offset`, `limit`, and filters: `environment`, `state`, `stop`, `prompt`,
                `version`, `errors` ("1"), `q` (text), and `NAME_min`, `NAME_max` of a column
                that can be sorted by.
        """
        where, values = _conditions(asked)
        column = asked.get("sort") if asked.get("sort") in SORTS else "dispatch"
        # Descending, SQLite puts what is missing last by itself, and can take an index.
        order = f"{column} IS NULL, {column} ASC, dispatch ASC"
        if asked.get("order") != "asc":
            order = f"{column} DESC, dispatch DESC"
        (count,) = self.index.query(f"SELECT count(*) AS n FROM episodes WHERE {where}", values)
        limit, offset = min(_whole(asked.get("limit"), PAGE), 1000), _whole(asked.get("offset"), 0)
        rows = self.index.query(
            # What is sorted are numbers of rows: whole rows, with their texts, take four times as long.
            f"SELECT * FROM episodes WHERE rowid IN (SELECT rowid FROM episodes WHERE {where} "
            f"ORDER BY {order} LIMIT ? OFFSET ?) ORDER BY {order}",
            (*values, limit, offset),
        )
        return {"total": count["n"], "rows": rows}

    def episode(self, identity: str) -> dict[str, Any] | None:
        """One episode with its tokens; its row alone where it is not on disk any more."""
        rows = self.index.query("SELECT * FROM episodes WHERE id = ?", (identity,))
        if not rows:
            return None
        (row,) = rows
        record = self.index.record(identity)
        if record is None:
            return row | {"kept": False}
        return episode_view(record, row, self._step(row["version"]), self.vocabulary()) | {"kept": True}

    def vocabulary(self) -> Vocabulary | None:
        """Of the run, once it is found."""
        if self._vocabulary is None:
            self._vocabulary = find_vocabulary(self.folder)
        return self._vocabulary

    def _step(self, version: int | None) -> StepRecord | None:
        if version is None:
            return None
        if version not in self._steps:
            try:
                self._steps[version] = StepFiles(self.folder).read(version)
            except DataError:
                self._steps[version] = None  # deleted as too old, or damaged
            if len(self._steps) > STEPS_CACHED:
                self._steps.popitem(last=False)
        return self._steps.get(version)

    # ------------------------------------------------------------------ prompts

    def prompts(self, asked: dict[str, str]) -> dict[str, Any]:
        """One page of the list of prompts."""
        column = asked.get("sort") if asked.get("sort") in PROMPT_SORTS else "attempts"
        order = "ASC" if asked.get("order") == "asc" else "DESC"
        text = asked.get("q", "")
        where, values = ("AND prompt LIKE ? ESCAPE '\\'", (_like(text),)) if text else ("", ())
        query = _PROMPTS.format(where=where)
        (count,) = self.index.query(
            f"SELECT count(DISTINCT prompt) AS n FROM episodes WHERE prompt IS NOT NULL {where}", values
        )
        rows = self.index.query(
            f"{query} ORDER BY {column} IS NULL, {column} {order}, prompt LIMIT ? OFFSET ?",
            (*values, _whole(asked.get("limit"), PAGE), _whole(asked.get("offset"), 0)),
        )
        return {"total": count["n"], "rows": rows}

    def prompt(self, identity: str) -> dict[str, Any]:
        """Every attempt at a prompt, oldest first, with the value that was read before each was folded."""
        rows = self.index.query("SELECT * FROM episodes WHERE prompt = ? ORDER BY dispatch", (identity,))
        return {"prompt": identity, "attempts": rows}

    # ------------------------------------------------------------------ reasons and times

    def reasons(self) -> list[dict[str, Any]]:
        """Discards, failures and abandoned episodes by reason, with the first of each."""
        return self.index.query(
            "SELECT state, reason, count(*) AS count, min(dispatch) AS first, "
            "(SELECT id FROM episodes AS one WHERE one.state = e.state AND one.reason IS e.reason "
            " ORDER BY dispatch LIMIT 1) AS id, "
            "(SELECT error FROM episodes AS one WHERE one.state = e.state AND one.reason IS e.reason "
            " ORDER BY dispatch LIMIT 1) AS error "
            "FROM episodes AS e WHERE state IN ('failed', 'discarded', 'abandoned') "
            "GROUP BY state, reason ORDER BY count(*) DESC LIMIT 200"
        )

    def timeline(self, first: float, last: float, limit: int = 600) -> dict[str, Any]:
        """Episodes that were under way between two times (seconds since 1970), the longest ones first."""
        rows = self.index.query(
            "SELECT id, prompt, reward, state, version, seconds, tool_seconds, grade_seconds, ended "
            "FROM episodes WHERE ended IS NOT NULL AND ended >= ? AND ended - seconds <= ? "
            "ORDER BY seconds DESC LIMIT ?",
            (first, last, limit),
        )
        return {"rows": sorted(rows, key=lambda row: row["ended"] - (row["seconds"] or 0.0))}


def _conditions(asked: dict[str, str]) -> tuple[str, list[Any]]:
    parts, values = ["1"], list[Any]()
    for name in ("environment", "state", "stop", "prompt", "kind"):
        if asked.get(name):
            parts.append(f"{name} = ?")
            values.append(asked[name])
    for name in SORTS:
        for end, sign in (("min", ">="), ("max", "<=")):
            if (bound := _float(asked.get(f"{name}_{end}"))) is not None:
                parts.append(f"{name} {sign} ?")
                values.append(bound)
    if asked.get("errors"):
        parts.append("(call_errors > 0 OR error IS NOT NULL)")
    if text := asked.get("q"):
        names = ("id", "prompt", "answer", "said", "error", "reason", "verdict")
        parts.append("(" + " OR ".join(f"{name} LIKE ? ESCAPE '\\'" for name in names) + ")")
        values += [_like(text)] * len(names)
    return " AND ".join(parts), values


def _like(text: str) -> str:
    for char in "\\%_":
        text = text.replace(char, f"\\{char}")
    return f"%{text}%"


def _whole(text: str | None, default: int) -> int:
    try:
        return max(0, min(int(text or ""), 2**40))
    except ValueError:
        return default


def _float(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
