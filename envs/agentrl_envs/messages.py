"""The plain data that passes between an environment and whoever runs it: messages, tool calls, transcripts,
rewards.

Everything here is JSON-like and immutable. Knows nothing of tokens, models or policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from .plain import plain

__all__ = ["Finish", "Message", "Reward", "ToolCall", "ToolResult", "ToolSpec", "Transcript", "text_of"]

MOST_CALLS = 500
"""Calls of one message that are read: a model that repeats itself opens a hundred thousand."""

Message: TypeAlias = dict[str, Any]
"""`{"role": "system"|"user"|"assistant"|"tool", "content": str | [{"type": "text", "text": ...}, ...]}`,
plain JSON.

Optional keys: `tool_calls` (assistant), `name` and `tool_call_id` (tool).
"""


def text_of(message: Mapping[str, Any]) -> str:
    """Text of a message: its content, or its text parts joined; other parts (images) are left out."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if part.get("type") == "text")


_PART_FIELDS = {
    "text": "text",
    "image": "image",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "audio": "audio",
    "video": "video",
    "video_url": "video_url",
    "file": "file",
}
"""What each type of content part must hold."""


def is_content_part(value: Any) -> bool:
    """Whether a value is a complete part of a message's content: data that only looks like one is data."""
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        return False
    field_name = _PART_FIELDS.get(value["type"])
    if value["type"] == "text":
        return isinstance(value.get("text"), str)
    return field_name is not None and value.get(field_name) is not None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it. `error` is set when the renderer could not parse it."""

    id: str
    name: str
    arguments: dict[str, Any] | None
    raw: str = ""
    error: str | None = None
    loose: str = ""
    """How the call departs from the format although it was read; counted as `loose/NAME`."""

    def as_last_of(self, count: int) -> ToolCall:
        """In its place the refusal of all that follow, in a message of more than `MOST_CALLS` calls."""
        error = f"this message makes {count:,} calls; the first {MOST_CALLS - 1} were read, and no more are"
        return replace(self, arguments=None, error=error)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call gave.

    `status`: "ok", "error" (the tool said no), "bad_arguments", "unknown_tool", "timeout", or the status of a
    program in the sandbox. `parts` keeps content parts (images) when the tool returned any; `text` is always
    there.
    """

    call_id: str
    name: str
    text: str
    ok: bool
    seconds: float
    status: str = "ok"
    infrastructure_failure: bool = False
    parts: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model is told of it. `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]
    parallel: bool
    timeout_s: float

    def as_openai(self) -> dict[str, Any]:
        """The `tools=[...]` entry that chat templates and OpenAI-style endpoints take."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Transcript:
    """A finished conversation, as `reward(row, answer, episode)` receives it."""

    messages: tuple[Message, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    turns: int = 0
    stop_reason: str = ""


@dataclass(frozen=True)
class Reward:
    """A checked reward: `value` is the sum of `parts` and lies in the environment's `reward_range`.

    `verdict` is the grader's, when the reward asked it.
    """

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None


class Finish(Exception):
    """Raise from a tool, `reply`, `prompt` or `setup` to end the episode there.

    With `reward`, that is the reward and `reward()` is not asked. With `answer`, that is what `reward()` is
    given, as text. `text` is what the model would have been told; it is kept for people reading the episode.

    Example:
        >>> class Guess(Env):
        ...     def prompt(self, row):
        ...         return "Guess a digit."
        ...     def reply(self, message):
        ...         raise Finish(reward=float(row_answer in message))
        ...     def reward(self, row, answer):
        ...         return False
        >>> row_answer = "7"
        >>> str(run_episode(Guess, {"id": "one"}, policy=ScriptedPolicy(["it is 7<|end|>"])).reward)
        '1.0'
    """

    def __init__(self, reward: Any = None, answer: Any = None, text: str = "") -> None:
        super().__init__(text or "the environment ended the episode")
        self.reward = reward
        self.answer = None if answer is None else str(plain(answer))
        self.text = text
        self.results: list[ToolResult] = []
        """Results of the calls of this turn that were finished before it."""
