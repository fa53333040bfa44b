"""`/v1/messages`: Anthropic's dialect, with blocks in place of messages of tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentrl.rollout.completer import MessageOptions
from agentrl.rollout.gateway.history import plain_call
from agentrl.rollout.gateway.request import (
    Answer,
    ChatRequest,
    Kept,
    Parameters,
    Refused,
    read_limit,
    read_messages,
    read_stop,
    read_text,
    read_tool,
)
from agentrl_envs import Message, ToolSpec

PARAMETERS = Parameters(
    done=["model", "messages", "system", "tools", "tool_choice", "stream", "max_tokens", "stop_sequences"],
    ignored=[
        "temperature",
        "top_p",
        "top_k",
        "metadata",
        "service_tier",
        "thinking",
        "cache_control",
        "betas",
        "output_config",
    ],
    refused={
        "mcp_servers": "the policy has only tools of the program",
        "container": "there are no containers of the model's",
        "context_management": "shorten the messages yourself",
    },
)


def read(body: Mapping[str, Any], kept: Kept) -> ChatRequest:
    """A request in the completer's terms.

    Raises:
        Refused: it asks for what cannot be done.
    """
    ignored = PARAMETERS.check(body)
    system = body.get("system")
    first: list[Message] = [{"role": "system", "content": read_text(system, "system")}] if system else []
    messages = read_messages(body, kept, _messages, first)
    named = body.get("tool_choice")
    if named is not None and not isinstance(named, Mapping):
        raise Refused("bad_tool_choice", 'tool_choice must be an object, like {"type": "auto"}')
    choice = (named or {}).get("type")
    if choice in ("any", "tool"):
        ignored = (*ignored, "tool_choice")
    tools = () if choice == "none" else kept.tools(body.get("tools"), _tool)
    stop, limit = read_stop(body.get("stop_sequences")), read_limit(body, "max_tokens")
    return ChatRequest(
        messages=messages,
        tools=tools,
        options=MessageOptions(stop=stop, max_tokens=limit),
        model=str(body.get("model") or ""),
        stream=bool(body.get("stream")),
        ignored=ignored,
    )


def _messages(message: Any, where: str) -> list[Message]:
    """One message of this dialect: a user's may hold results of tools, each a message of its own here."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("user", "assistant"):
        raise Refused("bad_messages", f"{where}: role {role!r}; want user or assistant")
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise Refused("bad_messages", f"{where}: content must be a text or a list of blocks")
    special = ("tool_result", "tool_use", "thinking", "redacted_thinking")
    texts = [block for block in blocks if block.get("type") not in special]
    out: list[Message] = [
        {
            "role": "tool",
            "tool_call_id": str(b.get("tool_use_id")),
            "content": read_text(b.get("content"), where),
        }
        for b in blocks
        if b.get("type") == "tool_result"
    ]
    calls = [
        plain_call(b.get("id"), b.get("name"), b.get("input")) for b in blocks if b.get("type") == "tool_use"
    ]
    if texts or calls or not out:
        said: Message = {"role": role, "content": read_text(texts, where)}
        out.append({**said, "tool_calls": calls} if calls else said)
    return out


def _tool(tool: Any) -> ToolSpec:
    if not isinstance(tool, Mapping) or "input_schema" not in tool:
        raise Refused("bad_tools", "every tool needs a name and an input_schema; the policy has no others")
    return read_tool(tool.get("name"), tool.get("description"), tool["input_schema"])


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": answer.text}] if answer.text or not answer.calls else []
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name or "unreadable", "input": call.arguments or {}}
        for call in answer.tool_calls
    ]
    return [*text, *calls]


def whole(answer: Answer) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    reason = "tool_use" if answer.tool_calls else "end_turn"
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": _blocks(answer),
        "stop_reason": reason if answer.reply.ended else "max_tokens",
        "stop_sequence": None,
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens},
    }


def events(answer: Answer, request: ChatRequest) -> Iterator[tuple[str, Any]]:
    """The same as a stream of events."""
    for kind, data in _events(answer):
        yield kind, {"type": kind, **data}


def _events(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    last = whole(answer)
    begun = {**last, "content": [], "stop_reason": None, "usage": {**last["usage"], "output_tokens": 0}}
    yield "message_start", {"message": begun}
    for at, (block, call) in enumerate(_with_arguments(answer)):
        empty = {**block, "text": ""} if call is None else {**block, "input": {}}
        yield "content_block_start", {"index": at, "content_block": empty}
        delta = (
            {"type": "text_delta", "text": block["text"]}
            if call is None
            else {"type": "input_json_delta", "partial_json": call}
        )
        yield "content_block_delta", {"index": at, "delta": delta}
        yield "content_block_stop", {"index": at}
    ended = {"stop_reason": last["stop_reason"], "stop_sequence": None}
    yield "message_delta", {"delta": ended, "usage": {"output_tokens": answer.completion_tokens}}
    yield "message_stop", {}


def _with_arguments(answer: Answer) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The blocks, and the arguments of those that are calls."""
    arguments = iter(arguments for _, _, arguments in answer.calls)
    for block in _blocks(answer):
        yield block, None if block["type"] == "text" else next(arguments)


def error(body: Mapping[str, Any]) -> dict[str, Any]:
    """A refusal in this dialect."""
    return {"type": "error", "error": {"type": body["type"], "message": f"{body['code']}: {body['message']}"}}
