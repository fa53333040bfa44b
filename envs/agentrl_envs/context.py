"""The conversation of an episode as its environment may edit it: dropped, cut or summarised when it is long.

A conversation that was edited no longer goes on from the tokens that were sampled: its next message opens
another segment of the episode. Knows nothing of tokens beyond their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .messages import Message, ToolSpec, text_of
from .model import Model

__all__ = ["SUMMARY_REQUEST", "Compaction", "Context"]

Compaction = Literal["none", "drop", "truncate", "summarise"]

_FULL = 0.75
"""Share of the context above which cut tool output is not enough."""

SUMMARY_REQUEST = (
    "The conversation is about to be shortened. Write down everything that is needed to go on with the task: "
    "what was found out, what was done, what is left to do. Call no tool."
)


class Context:
    """The messages of one episode, and what they take.

    Args:
        messages: of the episode; edited in place.
        model: that reads them.
        tools: offered with them.
    """

    def __init__(self, messages: list[Message], model: Model, tools: Sequence[ToolSpec]) -> None:
        self.messages = messages
        self._model, self._tools = model, tools
        self._opening = [dict(message) for message in messages]

    @property
    def tokens(self) -> int:
        """Tokens that the messages take now; 0 where nobody knows (an endpoint)."""
        return self._model.size(self.messages, self._tools)[0]

    @property
    def limit(self) -> int:
        """Tokens that the context of the model holds; 0 where nobody knows."""
        return self._model.size(self.messages, self._tools)[1]

    @property
    def share(self) -> float:
        """Share of the context that the messages take, 1 when it is full; 0 where nobody knows."""
        tokens, limit = self._model.size(self.messages, self._tools)
        return tokens / limit if limit else 0.0

    def drop(self, keep: int = 2) -> bool:
        """Leave out all but the opening and the newest `keep` turns; whether anything went.

        A turn is a message of the model and what came back for it. The opening says how many are left out.
        """
        begins = [
            at
            for at, message in enumerate(self.messages)
            if at >= len(self._opening) and message["role"] == "assistant"
        ]
        if len(begins) <= keep:
            return False
        start = begins[-keep] if keep else len(self.messages)
        gone = start - len(self._opening)
        self._open_with(f"[... {gone} earlier messages were left out ...]", self.messages[start:])
        return True

    def truncate(self, chars: int = 200, keep: int = 1) -> bool:
        """Cut all but the newest `keep` tool results to `chars` characters; whether any was cut."""
        results = [at for at, message in enumerate(self.messages) if message["role"] == "tool"]
        cut = False
        for at in results[: len(results) - keep]:
            text = text_of(self.messages[at])
            if len(text) > chars + 40:
                shown = f"{text[:chars]}\n[... the rest of {len(text)} characters was left out ...]"
                self.messages[at] = {**self.messages[at], "content": shown}
                cut = True
        return cut

    async def summarise(self, request: str = SUMMARY_REQUEST) -> bool:
        """Let the policy write down what matters, and go on from the opening and that; whether it did.

        The summary is a message of the policy like any other, and is learned from.
        """
        if len(self.messages) <= len(self._opening):
            return False
        last = self.messages[-1]
        asked = [*self.messages[:-1], {**last, "content": f"{text_of(last)}\n\n{request}"}]
        said = await self._model.complete(asked, self._tools)
        if said.cut is not None or not said.text.strip():
            return False
        self._open_with(f"What was found out and done so far:\n{said.text.strip()}", [])
        return True

    async def compact(self, how: Compaction) -> bool:
        """Shorten the conversation in one of the ways a setting names; whether it is shorter.

        Where a way finds nothing to do, the next stronger one is taken: tool output is cut, else turns are
        dropped, at last all of them.
        """
        if how == "none":
            return False
        if how == "summarise" and await self.summarise():
            return True
        if how == "truncate" and self.truncate() and self.share <= _FULL:
            return True
        return any(self.drop(keep) for keep in (2, 1))

    def _open_with(self, note: str, rest: list[Message]) -> None:
        """The opening with a note at the end of its last message, and `rest`."""
        *before, last = (dict(message) for message in self._opening)
        last["content"] = f"{text_of(last)}\n\n{note}"
        self.messages[:] = [*before, last, *rest]
