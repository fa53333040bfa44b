"""What a program asks for, whatever the dialect of its request: and what is wrong with it.

Parameters fall into three kinds: those that are done, those that the run decides (they are counted and
ignored: an unchanged program may send a temperature), and those that nobody could do without changing what is
learned (refused, with a reason). Anything else is a mistake and refused too.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.rollout.completer import MessageOptions, Reply
from agentrl_envs import Message, ToolCall, ToolSpec

MOST_BYTES = 32 << 20
"""Longest body of a request."""


class Refused(Exception):
    """A request that is not answered.

    Args:
        name: counted under `gateway/NAME`, and the `code` of the answer.
        message: what is wrong and what would be right.
        status: of HTTP.
    """

    def __init__(self, name: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.name, self.message, self.status = name, message, status


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One message asked for, in the terms of the completer."""

    messages: list[Message]
    """Assistant messages as the program sent them."""
    tools: tuple[ToolSpec, ...] = ()
    options: MessageOptions = field(default_factory=MessageOptions)
    model: str = ""
    stream: bool = False
    usage: bool = False
    """The stream is to end with the usage."""
    ignored: tuple[str, ...] = ()
    """Parameters that the run decides."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One message as every dialect tells it."""

    id: str
    model: str
    created: int
    """Seconds since the epoch."""
    text: str
    """What was said beside the calls, without a text that ended it."""
    reply: Reply
    tool_calls: tuple[ToolCall, ...]
    """Its calls, where the request offered tools; without, all is text."""
    calls: list[tuple[str, str, str]]
    """Id, name and arguments as JSON of each call."""
    prompt_tokens: int
    completion_tokens: int


dumps = json.JSONEncoder(ensure_ascii=False).encode
"""JSON as programs get it."""


def told_calls(calls: Sequence[ToolCall]) -> list[tuple[str, str, str]]:
    """Id, name and arguments as JSON of each call; a call that cannot be read keeps what was written."""
    return [
        (call.id, call.name or "unreadable", call.raw if call.arguments is None else dumps(call.arguments))
        for call in calls
    ]


@dataclass(slots=True)
class Kept:
    """What earlier requests of a key leave for the next one: most of its conversation was read before."""

    stored: dict[str, list[Message]] = field(default_factory=dict[str, list[Message]])
    """Conversations by the id of their newest answer (`previous_response_id`)."""
    _messages: list[tuple[Any, Sequence[Message]]] = field(default_factory=list)
    """Those of the newest request by place, as they came and as they were read."""
    _tools: tuple[Any, tuple[ToolSpec, ...]] = (None, ())

    def messages(self, given: list[Any], read_one: Callable[[Any, str], Sequence[Message]]) -> list[Message]:
        """The messages as `read_one` reads each; one that stood in its place before is the same object."""
        before, now = self._messages, []
        for at, message in enumerate(given):
            same = at < len(before) and before[at][0] == message
            now.append(before[at] if same else (message, read_one(message, f"messages[{at}]")))
        self._messages = now
        return [one for _, read in now for one in read]

    def tools(self, given: Any, read_one: Callable[[Any], ToolSpec]) -> tuple[ToolSpec, ...]:
        """The tools as `read_one` reads each; the same objects where they are those of the request before."""
        if self._tools[0] != given:
            self._tools = (given, tuple(read_one(tool) for tool in given or ()))
        return self._tools[1]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Which parameters a dialect knows."""

    done: Collection[str]
    ignored: Collection[str]
    refused: Mapping[str, str]
    """Why, by name."""
    harmless: Mapping[str, Collection[Any]] = field(default_factory=dict)
    """Values of refused parameters that ask for nothing special."""

    def check(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the parameters that are ignored.

        Raises:
            Refused: one cannot be done, or is none.
        """
        ignored: list[str] = []
        for name, value in body.items():
            if value is None or name in self.done:
                continue
            if name in self.ignored:
                ignored.append(name)
            elif name in self.refused:
                if value not in self.harmless.get(name, ()):
                    raise Refused(f"refused_{name}", f"{name}={value!r:.80}: {self.refused[name]}")
            else:
                known = [*self.done, *self.ignored, *self.refused]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise Refused("unknown_parameter", f"unknown parameter {name!r}{hint}")
        return tuple(ignored)


def read_tool(name: Any, description: Any, parameters: Any) -> ToolSpec:
    """A tool as the renderer takes it.

    Raises:
        Refused: it has no name, or its parameters are no schema of an object.
    """
    if not isinstance(name, str) or not name:
        raise Refused("bad_tools", "every tool needs a name")
    schema = parameters if parameters is not None else {"type": "object", "properties": {}}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise Refused("bad_tools", f"tool {name!r}: its parameters must be a JSON schema of type object")
    return ToolSpec(name, str(description or name), schema, parallel=False, timeout_s=0.0)


def read_text(content: Any, where: str) -> str:
    """Text of a message's content, parts joined by line breaks.

    Raises:
        Refused: a part is no text (an image): the policy cannot see it.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            parts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise Refused(
                "content_not_text",
                f"{where}: a part of type {kind!r}; the policy is given token ids alone: leave it out, or "
                "describe it in text",
            )
        parts.append(text)
    return "\n".join(parts)


def read_limit(body: Mapping[str, Any], *names: str) -> int:
    """Tokens that a message may have; 0 where it says nothing.

    Raises:
        Refused: it is no positive number.
    """
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refused("bad_max_tokens", f"{name}={value!r}: must be a whole number of at least 1")
        return value
    return 0


def read_stop(value: Any) -> tuple[str, ...]:
    """Texts that end a message.

    Raises:
        Refused: they are no texts.
    """
    texts = [value] if isinstance(value, str) else (value or [])
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) and one for one in texts):
        raise Refused("bad_stop", f"stop={value!r:.80}: must be a text, or a list of texts")
    return tuple(texts)


def count_request(counts: Counter[str], request: ChatRequest) -> None:
    """Count a request, and each parameter that was ignored in it."""
    counts["gateway/requests"] += 1
    for name in request.ignored:
        counts[f"gateway/ignored_{name}"] += 1


def read_messages(
    body: Mapping[str, Any],
    kept: Kept,
    read_one: Callable[[Any, str], Sequence[Message]],
    first: Sequence[Message] = (),
) -> list[Message]:
    """The conversation of a request; `first` goes before its messages.

    Raises:
        Refused: there is none, or it ends in the assistant's own words.
    """
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused("bad_messages", "messages must be a list of at least one message")
    messages = [*first, *kept.messages(given, read_one)]
    if messages[-1]["role"] == "assistant":
        raise Refused(
            "prefilled", "the last message is the assistant's; the policy begins its messages itself"
        )
    return messages
