"""`QuestionEnv`: a row has a question and an answer. What most environments from elsewhere are made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .env import Env
from .errors import EnvError
from .graders import Grader

__all__ = ["PROMPTS", "QuestionEnv", "named_grader"]

PROMPTS = ("prompt", "problem", "question", "task", "instruction", "input")
"""Fields of a row of which the first that is there is the prompt."""


class QuestionEnv(Env):
    """The prompt is a field of the row; the reward is whether the answer is the row's."""

    grading: str = ""
    """`equivalence`, `strict`, or `file.py:function` called with answer and gold; empty takes the run's."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if self.grading:
            self._grader = named_grader(self.grading)

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """The row's `prompt`, `problem`, `question`, ...: text, or a list of messages."""
        found = next((row[name] for name in PROMPTS if row.get(name) is not None), "")
        return found if isinstance(found, list) else str(found)

    def reward(self, row: Mapping[str, Any], answer: str | None) -> Any:
        """Whether the answer is the row's, by the grader."""
        if row.get("answer") is None:
            raise EnvError(
                "the row has no answer to compare with: write reward(row, answer), or give rows an answer"
            )
        if answer is None or answer.strip() == str(row["answer"]).strip():
            return answer is not None
        return self.grade(answer, row["answer"])


@lru_cache(maxsize=32)
def named_grader(name: str) -> Grader:
    """The grader of a name: `equivalence`, `strict`, or `file.py:function`.

    Raises:
        EnvError: there is none.
    """
    from .registry import load_file

    if name in ("equivalence", "strict"):
        return Grader(name)
    path, colon, attribute = name.rpartition(":")
    function = getattr(load_file(Path(path)), attribute, None) if colon and path.endswith(".py") else None
    if not callable(function):
        raise EnvError(f"no grader {name!r}; it is equivalence, strict, or a function in a file: my.py:name")
    return Grader(function=function)
