"""`StandIn`: a model that answers everything with one sentence, where an environment is tried without one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from .errors import EnvError
from .messages import Message, ToolCall, ToolResult, ToolSpec
from .model import Access, Spoken

__all__ = ["StandIn"]

SENTENCE = "I do not know."


@dataclass(frozen=True, slots=True)
class Sentence:
    """The message it says: text, and no calls."""

    text: str = SENTENCE
    tool_calls: tuple[ToolCall, ...] = ()
    cut: Any = None

    @property
    def message(self) -> Message:
        """The same as it goes back into a conversation."""
        return {"role": "assistant", "content": self.text}


class StandIn:
    """A `Model` for `agentrl check`, which calls tools and scores answers without any engine."""

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, agent: str = "agent"
    ) -> Spoken:
        """The sentence."""
        return Sentence()

    def size(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[int, int]:
        """(0, 0): it counts no tokens."""
        return 0, 0

    def acted(self, spoken: Spoken, results: Sequence[ToolResult]) -> list[Message]:
        """The results as messages."""
        return [
            {"role": "tool", "name": r.name, "tool_call_id": r.call_id, "content": r.text} for r in results
        ]

    def count(self, name: str, by: int = 1) -> None:
        """Nothing is counted."""

    def serve(self) -> AbstractAsyncContextManager[Access]:
        """Raises EnvError: there is nothing to serve."""
        raise EnvError("programs are started by `agentrl eval` and `agentrl train`, where there is a model")

    async def partner(self, messages: Sequence[Message]) -> str:
        """The sentence."""
        return SENTENCE
