"""What every renderer offers: messages to token ids, sampled token ids to messages.

A renderer only ever appends: the next prompt is the previous prompt, the ids exactly as sampled, and the ids
`extend` gives. Renderers keep no state of an episode and may be shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from agentrl.errors import RendererError
from agentrl_envs import Message, ToolCall, ToolResult, ToolSpec


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """One sampled message."""

    text: str
    """What was said, without the tokens that end a turn."""
    tool_calls: tuple[ToolCall, ...]
    message: Message
    """The same for people and environments, role `assistant`."""


@runtime_checkable
class Renderer(Protocol):
    """How one model family talks to tools."""

    stop: tuple[str, ...]
    """Texts that end a sampled message."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a sampled message."""
    turn_end_id: int
    """The token that a written message ends with: what the chat template puts there."""

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Ids of the prompt, up to and with what announces the assistant's turn.

        Raises:
            RendererError: these tools cannot be called in this format.
        """
        ...

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> ParsedMessage:
        """Read one sampled message. Never raises: a call that cannot be read carries its error.

        `tools`: those that were offered; formats without quotes (XML) take the types of arguments from them.
        """
        ...

    def extend(self, sampled: Sequence[int], additions: Sequence[ToolResult] | str) -> list[int]:
        """Ids to append after `sampled`: what closes the turn, the additions, and the next announcement.

        `additions` are the results of all calls of the message, in order, or what a user replies.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, control tokens included."""
        ...


Format = Literal["code", "hermes", "native"]
_READ = ("text", "thinking")


def refuse_pictures(messages: Sequence[Message]) -> None:
    """See that every part of every message is text.

    Raises:
        RendererError: one is a picture or the like. Engines and the learner are given token ids alone.
    """
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") not in _READ:
                raise RendererError(
                    f"a {message.get('role')} message has a part of type {part.get('type')!r}, and the "
                    "policy is given token ids alone: leave it out, or describe it in text"
                )


def runs_code(tool: ToolSpec, name: str = "python", argument: str = "code") -> bool:
    """Whether a code block can call a tool: it is called so, and needs the code alone."""
    return tool.name == name and set(tool.parameters.get("required", [])) <= {argument}
