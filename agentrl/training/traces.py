"""Written conversations to learn from: files in the form of OpenAI's fine-tuning, read and checked.

A trace is one line of JSON: `messages`, and `tools` where tools are called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import DataError
from agentrl_envs import Message, ToolSpec
from agentrl_envs.messages import is_content_part
from agentrl_envs.plain import read_json

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Trace:
    """One written conversation."""

    messages: tuple[Message, ...]
    """Plain JSON messages; an assistant's message with `"weight": 0` is shown but not learned."""
    tools: tuple[ToolSpec, ...] = ()
    place: str = "trace"
    """Where it was read, for error texts: `file:line`."""


def load_traces(path: str | Path) -> list[Trace]:
    """Read traces from a jsonl file.

    Raises:
        DataError: the file is missing or empty, or a line is not a trace; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file of traces (want jsonl, one conversation a line)")
    traces: list[Trace] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                traces.append(_read_line(line, f"{path}:{number}"))
    if not traces:
        raise DataError(f"{path}: no traces")
    return traces


def _read_line(line: bytes, place: str) -> Trace:
    try:
        data = read_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 (byte {error.object[error.start]:#04x}, as latin-1 has it); convert the "
            "file, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f'{place}: want an object with "messages", got {type(data).__name__}')
    return make_trace(data, place)


def make_trace(data: Mapping[str, Any], place: str = "trace") -> Trace:
    """Check one conversation.

    Raises:
        DataError: it breaks the form; names `place` and the message.
    """
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{place}: "messages" must be a list of messages')
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DataError(f"{place}: message {index} has the role {role!r}; want one of {', '.join(ROLES)}")
    messages = [_checked_content(message, f"{place}: message {at}") for at, message in enumerate(messages)]
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{place}: the last message must be the assistant's, not the {messages[-1]['role']}'s"
        )
    if messages[0]["role"] == "assistant":
        raise DataError(f"{place}: the first message is the assistant's; nothing was asked")
    return Trace(tuple(messages), tuple(_read_tool(tool, place) for tool in _tools(data, place)), place)


def _checked_content(message: Message, place: str) -> Message:
    """The message with content that is text; what a tool returned as an object is written as JSON."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if isinstance(content, list) and all(map(is_content_part, content)):
        other = sorted({part["type"] for part in content} - {"text"})
        if other:
            raise DataError(
                f"{place} has content of the type {', '.join(other)}; a warm start learns text only"
            )
        return message
    if message["role"] == "tool":
        return {**message, "content": json.dumps(content, ensure_ascii=False)}
    raise DataError(f"{place}: the content must be text or text parts, not {content!r:.80}")


def _tools(data: Mapping[str, Any], place: str) -> list[Any]:
    """The tools of a trace, also where a data set keeps them as JSON text."""
    tools = data.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = read_json(tools) or []
        except ValueError as error:
            raise DataError(f'{place}: "tools" is text, and not JSON: {error}') from error
    if not isinstance(tools, list):
        raise DataError(f'{place}: "tools" must be a list of tools, not {tools!r:.80}')
    return tools


def _read_tool(entry: Any, place: str) -> ToolSpec:
    try:
        function = entry["function"]
        return ToolSpec(
            name=function["name"],
            description=function.get("description", ""),
            parameters=function.get("parameters") or {"type": "object", "properties": {}},
            parallel=False,
            timeout_s=30.0,
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f'{place}: a tool must be {{"type": "function", "function": {{"name": ...}}}}, got {entry!r}'
        ) from error
