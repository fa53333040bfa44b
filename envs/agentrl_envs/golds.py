"""Gold answers that nothing can be compared with: their rows are found before anything is played or learned.

Knows nothing of what rows are used for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dataset import prompt_id
from .env import Env
from .graders import Grader, Verdict
from .threads import run_apart

__all__ = ["BadGold", "asks_grader", "usable_rows"]

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

_WHY = {
    Verdict.TIMED_OUT: "comparing anything with it goes past the grader's limits",
    Verdict.TOO_LONG: "it is too long or too deeply nested to be compared",
}


@dataclass(frozen=True, slots=True)
class BadGold:
    """One row that is set aside."""

    problem: str
    """Key of the row."""
    answer: Any
    why: str


def asks_grader(env: type[Env]) -> bool:
    """Whether the environment's `reward` calls `self.grade`."""
    return "grade" in getattr(getattr(env.reward, "__code__", None), "co_names", ())


def usable_rows(env: type[Env], rows: Sequence[Row], grader: Grader) -> tuple[list[Row], list[BadGold]]:
    """The rows whose gold answers can be compared, and what is wrong with the others.

    Looks at the field `answer`, and only where the environment's `reward` calls `self.grade`. A row with
    several gold answers is kept when one of them can be compared. Numbers and words take microseconds each,
    anything else about 10 ms of a processor.
    """
    if not asks_grader(env) or grader.mode == "strict" or not any("answer" in row for row in rows):
        return list(rows), []

    async def look() -> list[str]:
        return await asyncio.gather(*(_fault(row.get("answer"), grader) for row in rows))

    pairs = list(zip(rows, run_apart(look()), strict=True))
    aside = [BadGold(prompt_id(row), row.get("answer"), fault) for row, fault in pairs if fault]
    return [row for row, fault in pairs if not fault], aside


async def _fault(gold: Any, grader: Grader) -> str:
    """Why nothing can be compared with a gold answer; empty where something can."""
    golds = gold if isinstance(gold, list | tuple) else [gold]
    why = "it is empty"
    for one in golds:
        if one is None or isinstance(one, dict | bool):
            why = f"want a text, a number or a list of them, got {one!r}"
            continue
        verdict = await grader.check_gold(str(one))
        if verdict.right or verdict.failed:  # a grader that breaks says nothing of the row
            return ""
        why = _WHY.get(verdict, "it is no mathematics that can be read")
    return why
