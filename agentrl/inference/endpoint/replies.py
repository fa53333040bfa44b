"""Reads the body of a chat completion: text, reasoning, tool calls, why it ended; names what is none.

Endpoints that call themselves compatible differ in all of it. Knows nothing of requests, retries and budgets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.inference.endpoint.errors import BadAnswer, EndpointUnavailable
from agentrl_envs import Message, ToolCall
from agentrl_envs.messages import MOST_CALLS
from agentrl_envs.plain import read_any_json, read_json

_LENGTH = {"length", "max_tokens", "model_length", "max_output_tokens", "max_completion_tokens", "max_length"}
_REFUSED = {  # of OpenAI, Azure, Anthropic, Gemini, Bedrock and others
    "content_filter", "content_filtered", "refusal", "safety", "recitation", "blocklist", "flagged",
    "prohibited_content", "spii", "sensitive", "moderation", "guardrail_intervened", "image_safety",
}  # fmt: skip
_BROKEN = {"error", "abort", "aborted", "network_error", "insufficient_system_resource", "cancelled", "other"}
_MOST_PARTS, _DEEPEST = 10_000, 4
_TEXT_PARTS = {"text", "output_text"}
_REASONING_PARTS = {"thinking", "reasoning", "reasoning_text", "redacted_thinking"}


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """One message of a model, as an endpoint gave it."""

    text: str
    reasoning: str
    """Thinking that came apart from the text; never sent back."""
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    """`stop`, `length`, `tool_calls`, or what else the endpoint said."""
    refusal: str
    """Why it is no answer: a content filter, or the endpoint's own refusal. Empty where it is one."""
    prompt_tokens: int
    completion_tokens: int

    @property
    def message(self) -> Message:
        """The message as it goes back into the conversation."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.raw}}
                for c in self.tool_calls
            ]
        return message


def read_answer(body: str, url: str) -> ChatAnswer:
    """The answer in the body of a reply with status 200.

    Raises:
        BadAnswer: it is no chat completion; the text says what it is instead.
        EndpointUnavailable: it says that something broke on the way.
    """
    try:
        return _answer(_json(body))
    except BadAnswer as error:
        shown = " ".join(body.split())[:200]
        raise BadAnswer(
            f"{url} answered something that is no chat completion: {error}; it begins {shown!r}"
        ) from error
    except EndpointUnavailable as error:
        raise EndpointUnavailable(f"{url}: {error}") from error


def _json(body: str) -> Any:
    if not body.strip():
        raise BadAnswer("nothing at all")
    try:
        return read_any_json(body.removeprefix("\ufeff"))
    except ValueError as error:
        if body.lstrip().startswith("data:"):
            raise BadAnswer("no JSON but a stream of events, though none was asked for") from error
        if body.lstrip().startswith("<"):
            raise BadAnswer("no JSON but a page of HTML (does the URL end in /v1?)") from error
        raise BadAnswer(f"no JSON: {error}") from error


def _answer(data: Any) -> ChatAnswer:
    if not isinstance(data, Mapping):
        raise BadAnswer(f"JSON that is {_kind(data)}, not an object")
    choices = data.get("choices")
    if data.get("error") and not choices:
        raise EndpointUnavailable(f"an error with status 200: {_text_of_error(data['error'])}")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise BadAnswer(f"`choices` is {_kind(choices) if choices != [] else 'empty'}")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, Mapping):
        pieces = {"delta": "a piece of a stream", "text": "a completion of text, not of a chat"}
        known = next((name for key, name in pieces.items() if key in choice), None)
        raise BadAnswer(f"its choice is {known}" if known else f"`message` is {_kind(message)}")
    reason = str(choice.get("finish_reason") or "stop")
    if reason.lower() in _BROKEN:
        raise EndpointUnavailable(f"it gave up the answer (finish_reason {reason!r})")
    text, reasoning, refusal = _content(message)
    calls = _calls(message)
    if reason.lower() in _REFUSED:
        refusal = f"finish_reason {reason!r}" + (f": {refusal}" if refusal else "")
    elif text or calls:
        refusal = ""  # an answer beside it is an answer
    usage = data.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return ChatAnswer(
        text,
        reasoning,
        calls,
        "length" if reason.lower() in _LENGTH else reason,
        refusal,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _content(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """Text, reasoning and refusal of a message; the content may come in parts."""
    content = message.get("content")
    parts = [content] if isinstance(content, Mapping) else content
    text: list[str] = []
    reasoning = [str(message.get("reasoning_content") or message.get("reasoning") or "")]
    refusal = [str(message.get("refusal") or "")]
    if content is None or isinstance(content, str):
        text.append(content or "")
        parts = []
    if not isinstance(parts, list):
        raise BadAnswer(f"`content` is {_kind(content)}")
    for part in _some(parts):
        kind, said = _kind_of_part(part), _part_text(part)
        if kind in _REASONING_PARTS:
            reasoning.append(said or "")
        elif kind == "refusal":
            refusal.append(said or "")
        elif said is not None and (kind in _TEXT_PARTS or kind is None):
            text.append(said)
        elif kind not in ("tool_use", "tool_call", "function_call"):  # they are in `tool_calls` as well
            raise BadAnswer(f"a part of `content` has the type {kind!r}")
    return "".join(text), "\n".join(filter(None, reasoning)), "\n".join(filter(None, refusal))


def _kind_of_part(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return "text"
    kind = part.get("type")
    return kind if kind is None else str(kind)


def _some(parts: list[Any]) -> list[Any]:
    if len(parts) > _MOST_PARTS:
        raise BadAnswer(f"`content` has {len(parts):,} parts, more than {_MOST_PARTS:,}")
    return parts


def _part_text(part: Any, depth: int = 0) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    for key in ("text", "thinking", "reasoning", "refusal", "content"):
        value = part.get(key)
        if isinstance(value, str) or (value is None and key in part):
            return value or ""
        if isinstance(value, list) and depth < _DEEPEST:  # thinking in parts of its own
            return "".join(_part_text(item, depth + 1) or "" for item in _some(value))
    return None


def _calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls")
    if not calls and isinstance(message.get("function_call"), Mapping):  # the older form
        calls = [{"function": message["function_call"]}]
    if not calls:
        return ()
    if not isinstance(calls, list):
        raise BadAnswer(f"`tool_calls` is {_kind(calls)}")
    read = tuple(_call(call, number) for number, call in enumerate(calls[:MOST_CALLS]))
    return (*read[:-1], read[-1].as_last_of(len(calls))) if len(calls) > MOST_CALLS else read


def _call(call: Any, number: int) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadAnswer(f"tool call {number + 1} names no function")
    call_id = str(call.get("id") or f"call_{number}")
    raw = function.get("arguments")
    text = raw if isinstance(raw, str) else json.dumps({} if raw is None else raw)
    try:
        arguments = read_json(text or "{}")
        for _ in range(_DEEPEST):
            if isinstance(arguments, str):  # encoded twice
                text, arguments = arguments, read_json(arguments or "{}")
    except ValueError as error:
        return ToolCall(call_id, function["name"], None, text, f"the arguments are no JSON: {error}")
    if not isinstance(arguments, dict):
        return ToolCall(call_id, function["name"], None, text, "the arguments must be a JSON object")
    return ToolCall(call_id, function["name"], arguments, text)


def _text_of_error(error: Any) -> str:
    said = error.get("message") or error.get("code") if isinstance(error, Mapping) else error
    return str(said or error)[:500]


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0


def _kind(value: Any) -> str:
    names = {type(None): "missing", str: "a text", list: "a list", dict: "an object", bool: "a truth value"}
    return names.get(type(value), "a number")
