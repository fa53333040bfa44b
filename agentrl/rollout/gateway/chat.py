"""`/v1/chat/completions`: the dialect that nearly every agent speaks."""

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

DECIDED = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "prompt_cache_key",
    "safety_identifier",
    "prompt_cache_retention",
]
"""Parameters that the run decides, or that mean nothing here; ignored and counted."""

ONE = "an episode goes on from one message; ask several times"
PARAMETERS = Parameters(
    done=[
        "model",
        "messages",
        "tools",
        "tool_choice",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "stop",
    ],
    ignored=DECIDED,
    refused={
        "n": ONE,
        "best_of": ONE,
        "logprobs": "log-probabilities are recorded, and not given to programs",
        "top_logprobs": "log-probabilities are recorded, and not given to programs",
        "response_format": "nothing constrains what the policy writes; ask for the format in the prompt",
        "functions": "this is the old form; use tools",
        "function_call": "this is the old form; use tool_choice",
        "audio": "the policy writes text",
        "modalities": "the policy writes text",
        "web_search_options": "the policy has only the tools of the request",
        "prediction": "nothing is predicted",
    },
    harmless={
        "n": (1,),
        "best_of": (1,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "function_call": ("none", "auto"),
    },
)


def read(body: Mapping[str, Any], kept: Kept) -> ChatRequest:
    """A request in the completer's terms.

    Raises:
        Refused: it asks for what cannot be done.
    """
    ignored = PARAMETERS.check(body)
    messages = read_messages(body, kept, lambda message, where: [_message(message, where)])
    choice = body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        ignored = (*ignored, "tool_choice")
    tools = () if choice == "none" else kept.tools(body.get("tools"), _tool)
    limit = read_limit(body, "max_completion_tokens", "max_tokens")
    return ChatRequest(
        messages=messages,
        tools=tools,
        options=MessageOptions(stop=read_stop(body.get("stop")), max_tokens=limit),
        model=str(body.get("model") or ""),
        stream=bool(body.get("stream")),
        usage=bool((body.get("stream_options") or {}).get("include_usage")),
        ignored=ignored,
    )


def _message(message: Any, where: str) -> Message:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise Refused(
            "bad_messages", f"{where}: role {role!r}; want system, developer, user, assistant or tool"
        )
    out: Message = {
        "role": "system" if role == "developer" else role,
        "content": read_text(message.get("content"), where),
    }
    if role == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            raise Refused("bad_messages", f"{where}: a tool's message needs a tool_call_id")
        out["tool_call_id"] = message["tool_call_id"]
    if role == "assistant" and message.get("tool_calls"):
        try:
            out["tool_calls"] = [
                plain_call(c["id"], c["function"]["name"], c["function"]["arguments"])
                for c in message["tool_calls"]
            ]
        except (KeyError, TypeError) as error:
            raise Refused("bad_messages", f"{where}: a tool call without id, name or arguments") from error
    return out


def _tool(tool: Any) -> ToolSpec:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise Refused("bad_tools", 'every tool must be {"type": "function", "function": {...}}')
    return read_tool(function.get("name"), function.get("description"), function.get("parameters"))


def finish_reason(answer: Answer) -> str:
    """Why the message ended, in the words of this dialect."""
    if not answer.reply.ended:
        return "length"
    return "tool_calls" if answer.tool_calls else "stop"


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of a request."""
    total = answer.prompt_tokens + answer.completion_tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": total,
    }


def whole(answer: Answer) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    calls = _calls(answer)
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if calls else "")}
    message |= {"refusal": None, "annotations": []}
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(answer)}
    return {**_head(answer, "chat.completion"), "choices": [choice], "usage": usage(answer)}


def events(answer: Answer, request: ChatRequest) -> Iterator[tuple[str, Any]]:
    """The same as a stream of events, their names empty."""
    head = {**_head(answer, "chat.completion.chunk"), **({"usage": None} if request.usage else {})}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> tuple[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return "", {**head, "choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    if answer.text:
        yield chunk({"content": answer.text})
    for at, call in enumerate(_calls(answer)):
        yield chunk({"tool_calls": [{"index": at, **call}]})
    yield chunk({}, finish_reason(answer))
    if request.usage:
        yield "", {**head, "choices": [], "usage": usage(answer)}
    yield "", "[DONE]"


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": answer.created, "model": answer.model}


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in answer.calls
    ]
