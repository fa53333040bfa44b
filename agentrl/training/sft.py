"""Written conversations to token sequences for a supervised warm start.

A trace is one line of JSON in the form of OpenAI's fine-tuning files: `messages`, and `tools` where
tools are called. It goes through the same renderer as training by reinforcement learning, so that
what the model learns here is token for token what it will meet there; only what the assistant says
is learned. Knows nothing of environments, sandboxes or rewards; the optimizer lives in
`agentrl.learner.supervised`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentrl.episode import Segment, SegmentBuilder
from agentrl.errors import DataError
from agentrl.weights.model_files import WARM_START
from agentrl_envs import Message, ToolResult, ToolSpec, text_of
from agentrl_envs.messages import is_content_part
from agentrl_envs.plain import read_json

if TYPE_CHECKING:
    from agentrl.learner.supervised import SupervisedMetrics, SupervisedSettings
    from agentrl.renderers.base import Renderer

Format = Literal["code", "hermes"]
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
        text = written_message(trace.messages[at], self._format, f"{trace.place}: message {at}", trace.tools)
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        if any(i in renderer.stop_token_ids for i in ids):
            raise DataError(f"{trace.place}: message {at} has a token that ends a turn in its middle")
        if not text.endswith(renderer.stop or ("\0",)):
            ids.append(renderer.turn_end_id)
        calls = renderer.parse(ids).tool_calls
        wrong = next((call.error for call in calls if call.error), None)
        if wrong is not None:
            raise DataError(f"{trace.place}: message {at} calls a tool in a way that cannot be read: {wrong}")
        meant = len(trace.messages[at].get("tool_calls") or ())
        if meant and meant != len(calls):
            raise DataError(
                f"{trace.place}: message {at} has {meant} tool calls, but {len(calls)} are read from its text"
            )
        return ids, [call.name for call in calls]

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


@dataclass(frozen=True, slots=True)
class SftResult:
    """What a warm start came to; also written as `sft.json` beside the weights."""

    traces: int
    too_long: int
    unlearned_reasoning: int
    """Traces with reasoning that was left out."""
    format: Format
    """How the model was taught to call tools."""
    learned_tokens: int
    """Tokens with a loss in one pass over the traces."""
    steps: int
    loss_first: float
    """Held-out loss before, nats a token."""
    loss_last: float
    """Held-out loss after, nats a token."""
    cpu_s: float
    wall_s: float
    history: list[dict[str, float]] = field(default_factory=list)


def fine_tune(
    model_path: str,
    traces: Sequence[Trace],
    out: str | Path,
    settings: SupervisedSettings,
    *,
    format: Format | Literal["auto"] = "code",
    max_tokens: int = 1024,
    on_step: Callable[[SupervisedMetrics], None] | None = None,
) -> SftResult:
    """Train a Hugging Face model on traces and write weights and tokenizer to `out`.

    Raises:
        DataError: the traces cannot be used.
        ConfigError: there is no model at `model_path`.
    """
    from agentrl.learner.supervised import load_model, save_model, train_supervised

    model, tokenizer = load_model(model_path, settings)
    rendered = render_traces(traces, tokenizer, format, max_tokens=max_tokens)
    outcome = train_supervised(model, rendered.segments, settings, on_step=on_step)
    result = SftResult(
        traces=len(rendered.segments),
        too_long=rendered.too_long,
        unlearned_reasoning=rendered.unlearned_reasoning,
        format=rendered.format,
        learned_tokens=rendered.learned_tokens,
        **outcome,
    )
    save_model(model, tokenizer, out)
    fields = {name: getattr(result, name) for name in SftResult.__dataclass_fields__}
    (Path(out) / WARM_START).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return result


def write_traces(path: str | Path, traces: Iterable[Mapping[str, Any]]) -> int:
    """Write traces as jsonl; returns how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for line in _lines(traces):
            file.write(line)
            count += 1
    return count


def _lines(traces: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for trace in traces:
        yield json.dumps(trace, ensure_ascii=False) + "\n"
