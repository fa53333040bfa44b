"""Token sequences of written conversations, through the renderer that reinforcement learning uses.

What the model learns here is token for token what it will meet there; only what the assistant says is
learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentrl.episode import Segment, SegmentBuilder
from agentrl.errors import DataError
from agentrl.renderers.native import NativeRenderer
from agentrl.training.traces import Trace
from agentrl_envs import Message, ToolResult, ToolSpec, text_of
from agentrl_envs.plain import read_json

if TYPE_CHECKING:
    from agentrl.renderers.base import Renderer

Format = Literal["code", "hermes", "native"]


def written_message(
    message: Message, format: Format, place: str = "trace", tools: Sequence[ToolSpec] = ()
) -> str:
    """What the model writes to say `message` in a format, without the token that ends a turn.

    Arguments that are null only because a data set gives every call the same columns are left out: those
    that the tool's schema does not know, or does not allow to be null.

    Raises:
        DataError: a tool call cannot be written in this format.
    """
    text = text_of(message)
    schemas = {tool.name: tool.parameters for tool in tools}
    calls = [_read_call(call, place, schemas) for call in message.get("tool_calls") or ()]
    if not calls:
        return text
    if format == "hermes":
        bodies = [{"name": name, "arguments": arguments} for name, arguments in calls]
        blocks = [f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>" for body in bodies]
        return "\n".join([text, *blocks] if text else blocks)
    if len(calls) > 1:
        raise DataError(f'{place}: {len(calls)} calls in one message; the format "code" writes one')
    name, arguments = calls[0]
    if set(arguments) != {"code"} or not isinstance(arguments["code"], str):
        raise DataError(
            f'{place}: the format "code" writes calls of one text "code", not {name}({arguments})'
        )
    block = f"<code>\n```python\n{arguments['code'].strip()}\n```\n</code>"
    return f"{text.rstrip()}\n{block}" if text.strip() else block


def _read_call(call: Any, place: str, schemas: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = read_json(arguments)
        name = str(function["name"])
        return name, _without_filling(dict(arguments), schemas.get(name))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{place}: a tool call must be {{"function": {{"name": ..., "arguments": ...}}}}, got {call!r}'
        ) from error


def _without_filling(value: Any, schema: Any) -> Any:
    """A value without nulls that the schema of an object does not allow, at any depth."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        return [_without_filling(item, schema.get("items")) for item in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties") or {}
    return {
        name: _without_filling(item, known.get(name))
        for name, item in value.items()
        if item is not None or _allows_null(known.get(name))
    }


def _allows_null(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    kinds = schema.get("type")
    options = [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
    return (
        kinds == "null"
        or (isinstance(kinds, list) and "null" in kinds)
        or schema.get("nullable") is True
        or None in (schema.get("enum") or ())
        or any(map(_allows_null, options))
    )


def render_trace(trace: Trace, renderer: Renderer, tokenizer: Any, format: Format) -> Segment:
    """Tokens of one conversation; `loss_mask` is 1 on what the assistant writes, its turn end included.

    Log-probabilities and versions of the segment are placeholders (0): nobody sampled it.

    Raises:
        DataError: what the trace says the assistant wrote is not what the renderer reads from it.
    """
    return _Rendering(trace, renderer, tokenizer, format).segment()


class _Rendering:
    def __init__(self, trace: Trace, renderer: Renderer, tokenizer: Any, format: Format) -> None:
        self._trace, self._renderer, self._tokenizer = trace, renderer, tokenizer
        self._format: Format = format
        self._builder = SegmentBuilder()

    def segment(self) -> Segment:
        messages = self._trace.messages
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        self._builder.append_given(self._renderer.start(messages[:first], self._trace.tools))
        at = first
        while at < len(messages):
            at = self._exchange(at)
        return self._builder.build()

    def _exchange(self, at: int) -> int:
        """Append the assistant's message `at` and what answers it; returns where the next one is."""
        messages = self._trace.messages
        ids, calls = self._write(at)
        if messages[at].get("weight", 1):
            self._builder.append_sampled(ids, [0.0] * len(ids), [0] * len(ids))
        else:
            self._builder.append_given(ids)
        end = at + 1
        while end < len(messages) and messages[end]["role"] != "assistant":
            end += 1
        additions = messages[at + 1 : end]
        if additions:
            self._builder.append_given(self._renderer.extend(ids, self._additions(at, additions, calls)))
        elif end < len(messages):
            raise DataError(f"{self._trace.place}: messages {at} and {end} are both the assistant's")
        return end

    def _write(self, at: int) -> tuple[list[int], list[str]]:
        """Ids of the assistant's message, and the names of the tools it calls."""
        trace, renderer = self._trace, self._renderer
        ids = self._written_ids(at)
        calls = renderer.parse(ids, trace.tools).tool_calls
        wrong = next((call.error for call in calls if call.error), None)
        if wrong is not None:
            raise DataError(f"{trace.place}: message {at} calls a tool in a way that cannot be read: {wrong}")
        meant = len(trace.messages[at].get("tool_calls") or ())
        if meant and meant != len(calls):
            raise DataError(
                f"{trace.place}: message {at} has {meant} tool calls, but {len(calls)} are read from its text"
            )
        return ids, [call.name for call in calls]

    def _written_ids(self, at: int) -> list[int]:
        trace, renderer = self._trace, self._renderer
        if isinstance(renderer, NativeRenderer):
            return renderer.write(trace.messages[at], trace.tools)
        text = written_message(trace.messages[at], self._format, f"{trace.place}: message {at}", trace.tools)
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        if any(i in renderer.stop_token_ids for i in ids):
            raise DataError(f"{trace.place}: message {at} has a token that ends a turn in its middle")
        if not text.endswith(renderer.stop or ("\0",)):
            ids.append(renderer.turn_end_id)
        return ids

    def _additions(
        self, at: int, messages: Sequence[Message], calls: Sequence[str]
    ) -> list[ToolResult] | str:
        place = f"{self._trace.place}: message {at}"
        roles = {message["role"] for message in messages}
        if roles == {"tool"}:
            if len(messages) != len(calls):
                raise DataError(
                    f"{place} calls {len(calls)} tools and is answered by {len(messages)} results"
                )
            return [
                ToolResult(f"call_{i}", name, text_of(message), ok=True, seconds=0.0)
                for i, (name, message) in enumerate(zip(calls, messages, strict=True))
            ]
        if roles == {"user"} and len(messages) == 1 and not calls:
            return text_of(messages[0])
        raise DataError(f"{place} must be followed by the results of its calls, or by one user message")


@dataclass(frozen=True, slots=True)
class RenderedTraces:
    """Token sequences to learn from."""

    segments: tuple[Segment, ...]
    format: Format = "code"
    """How tools are called in them."""
    too_long: int = 0
    """Traces left out because they have more tokens than allowed."""
    unlearned_reasoning: int = 0
    """Traces with messages whose `reasoning_content` is not learned: no format writes it."""

    @property
    def learned_tokens(self) -> int:
        """Tokens with a loss."""
        return sum(segment.num_sampled for segment in self.segments)


def render_traces(
    traces: Iterable[Trace],
    tokenizer: Any,
    format: Format | Literal["auto"] = "code",
    *,
    max_tokens: int = 1024,
) -> RenderedTraces:
    """Render traces with the renderer of `format`; those of more than `max_tokens` tokens are left out.

    Raises:
        DataError: a trace cannot be rendered, or none is left.
        RendererError: the tokenizer does not suit the format.
    """
    from agentrl.renderers.making import choose_format, make_renderer

    traces = list(traces)
    if format == "auto":
        format = choose_format(tokenizer, [trace.tools for trace in traces])
    renderer = make_renderer(tokenizer, format)
    rendered = [render_trace(trace, renderer, tokenizer, format) for trace in traces]
    kept = tuple(segment for segment in rendered if len(segment) <= max_tokens)
    if not kept:
        raise DataError(f"no trace of {len(rendered)} has at most {max_tokens} tokens")
    reasoning = sum(any(message.get("reasoning_content") for message in trace.messages) for trace in traces)
    return RenderedTraces(kept, format, len(rendered) - len(kept), reasoning)
