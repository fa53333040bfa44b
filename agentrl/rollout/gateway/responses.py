"""`/v1/responses`: the newer dialect of OpenAI's SDKs, with items in place of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentrl.rollout.completer import MessageOptions
from agentrl.rollout.gateway.chat import DECIDED
from agentrl.rollout.gateway.history import plain_call
from agentrl.rollout.gateway.request import (
    Answer,
    ChatRequest,
    Kept,
    Parameters,
    Refused,
    read_limit,
    read_text,
    read_tool,
)
from agentrl_envs import Message, ToolSpec

PARAMETERS = Parameters(
    done=[
        "model",
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "stream",
        "max_output_tokens",
        "previous_response_id",
    ],
    ignored=[*DECIDED, "include", "reasoning", "truncation", "max_tool_calls", "stream_options"],
    refused={
        "background": "answers are given at once",
        "conversation": "send the items, or previous_response_id",
        "prompt": "there are no stored prompts",
        "text": "nothing constrains what the policy writes; ask for the format in the prompt",
        "top_logprobs": "log-probabilities are recorded, and not given to programs",
        "context_management": "shorten the input yourself",
    },
    harmless={
        "background": (False,),
        "text": ({"format": {"type": "text"}}, {}),
        "top_logprobs": (0,),
    },
)


def read(body: Mapping[str, Any], kept: Kept) -> ChatRequest:
    """A request in the completer's terms, after the conversation that it names.

    Raises:
        Refused: it asks for what cannot be done.
    """
    ignored = PARAMETERS.check(body)
    previous = body.get("previous_response_id")
    before = [] if previous is None else kept.stored.get(str(previous).removeprefix("resp_"))
    if before is None:
        raise Refused("unknown_response", f"this episode has no response {previous!r}", 404)
    messages = [*before, *_messages(body.get("input"))]
    if body.get("instructions"):
        rest = messages[1:] if messages and messages[0]["role"] == "system" and before else messages
        messages = [{"role": "system", "content": read_text(body["instructions"], "instructions")}, *rest]
    if not messages or messages[-1]["role"] == "assistant":
        raise Refused("bad_messages", "the input must end with a message of the user, or a tool's output")
    choice = body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        ignored = (*ignored, "tool_choice")
    tools = () if choice == "none" else kept.tools(body.get("tools"), _tool)
    return ChatRequest(
        messages=messages,
        tools=tools,
        options=MessageOptions(max_tokens=read_limit(body, "max_output_tokens")),
        model=str(body.get("model") or ""),
        stream=bool(body.get("stream")),
        ignored=ignored,
    )


def _messages(items: Any) -> list[Message]:
    """Input items as messages; items that are one message of the assistant are joined again."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise Refused("bad_messages", "input must be a text or a list of items")
    messages: list[Message] = []
    for at, item in enumerate(items):
        _add(messages, item, f"input[{at}]")
    return messages


def _add(messages: list[Message], item: Any, where: str) -> None:
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    last: Message | None = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "reasoning":
        return
    if kind == "function_call":
        if last is None:
            last = {"role": "assistant", "content": ""}
            messages.append(last)
        call = plain_call(item.get("call_id"), item.get("name"), item.get("arguments"))
        last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        text = read_text(item.get("output"), where)
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id")), "content": text})
    elif kind == "message" and item.get("role") in ("system", "developer", "user", "assistant"):
        role, text = item["role"], read_text(item.get("content"), where)
        messages.append({"role": "system" if role == "developer" else role, "content": text})
    else:
        raise Refused("bad_messages", f"{where}: an item of type {kind!r} cannot be read")


def _tool(tool: Any) -> ToolSpec:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        raise Refused("bad_tools", f"a tool of type {kind!r}: the policy has only functions of the program")
    return read_tool(tool.get("name"), tool.get("description"), tool.get("parameters"))


def _items(answer: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    calls = answer.calls
    if answer.text or not calls:
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        head = {"type": "message", "id": f"msg_{answer.id}", "role": "assistant", "status": "completed"}
        items.append({**head, "content": [part]})
    for id, name, arguments in calls:
        call = {"type": "function_call", "id": f"fc_{id}", "call_id": id, "name": name}
        items.append({**call, "arguments": arguments, "status": "completed"})
    return items


def whole(answer: Answer) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    return _response(answer, _items(answer), "completed" if answer.reply.ended else "incomplete")


def _response(answer: Answer, items: list[dict[str, Any]], status: str) -> dict[str, Any]:
    read, written = answer.prompt_tokens, answer.completion_tokens
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "model": answer.model,
        "status": status,
        "output": items,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        },
    }


def events(answer: Answer, request: ChatRequest) -> Iterator[tuple[str, Any]]:
    """The same as a stream of events."""
    for number, (kind, data) in enumerate(_events(answer)):
        yield kind, {"type": kind, "sequence_number": number, **data}


def _events(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": _response(answer, [], "in_progress")}
    for at, item in enumerate(_items(answer)):
        where = {"output_index": at, "item_id": item["id"]}
        started = {**item, "status": "in_progress"}
        if item["type"] == "message":
            part = item["content"][0]
            where |= {"content_index": 0}
            yield "response.output_item.added", {"output_index": at, "item": {**started, "content": []}}
            yield "response.content_part.added", {**where, "part": {**part, "text": ""}}
            yield "response.output_text.delta", {**where, "delta": part["text"], "logprobs": []}
            yield "response.output_text.done", {**where, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", {**where, "part": part}
        else:
            arguments = item["arguments"]
            yield "response.output_item.added", {"output_index": at, "item": {**started, "arguments": ""}}
            yield "response.function_call_arguments.delta", {**where, "delta": arguments}
            done = {**where, "name": item["name"], "arguments": arguments}
            yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": at, "item": item}
    last = whole(answer)
    yield f"response.{last['status']}", {"response": last}
