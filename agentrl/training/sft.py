"""Written conversations to token sequences for a supervised warm start.

A trace is one line of JSON in the form of OpenAI's fine-tuning files: `messages`, and `tools` where
tools are called. It goes through the same renderer as training by reinforcement learning, so that
what the model learns here is token for token what it will meet there; only what the assistant says
is learned, by the learner with the loss `cross_entropy`. Knows nothing of environments, sandboxes or rewards.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from agentrl.config.ranges import Amount, Count, Number, PartOf, Seed, Share
from agentrl.config.settings import Beta, LearnerSettings, LossSettings, ModelSettings, Rules
from agentrl.episode import Episode, Segment, SegmentBuilder, StopReason
from agentrl.errors import ConfigError, DataError
from agentrl.storage.durable import whole_folder
from agentrl.weights.model_files import WARM_START, load_tokenizer
from agentrl_envs import Message, ToolResult, ToolSpec, text_of
from agentrl_envs.messages import is_content_part
from agentrl_envs.plain import read_json

if TYPE_CHECKING:
    from agentrl.learner.learner import Learner
    from agentrl.learner.metrics import StepMetrics
    from agentrl.renderers.base import Renderer

Format = Literal["code", "hermes"]
SHORT = {
    "model": "model.path",
    "dtype": "model.dtype",
    "device": "model.device",
    "threads": "model.threads",
    "learning_rate": "learner.learning_rate",
    "micro_batch_tokens": "learner.micro_batch_tokens",
    "out": "sft.out",
    "format": "sft.format",
    "epochs": "sft.epochs",
    "batch": "sft.batch",
    "limit": "sft.limit",
    "max_tokens": "sft.max_tokens",
    "seed": "sft.seed",
}
"""Short options of `agentrl sft`, and the settings that they stand for."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class WarmStartSettings:
    """`[sft]`: what is learned from, and how often."""

    traces: str = ""
    """A jsonl file of conversations in the form of OpenAI's fine-tuning files."""
    out: str = ""
    """Folder of the new weights, which are written in bfloat16."""
    format: Annotated[str, PartOf("renderer", also=("auto",))] = "auto"
    """As `rollout.format`; `auto` takes what the chat template or the tools of the traces ask for."""
    epochs: Count = 1
    """Passes over the traces."""
    batch: Count = 16
    """Traces of one optimizer step."""
    limit: Number = 0
    """First traces only; 0 takes all."""
    max_tokens: Count = 1024
    """Longer traces are left out."""
    held_out: Number = 32
    """Last traces (after shuffling) that are not learned from and measure the loss."""
    warmup_share: Share = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    final_share: Share = 0.1
    """Learning rate at the end, relative to the largest; it falls along a cosine."""
    seed: Seed = 0
    """Of the order of the traces."""

    def rules(self) -> Rules:
        """What is missing."""
        for name in ("traces", "out"):
            if not getattr(self, name):
                yield (name,), f"name the {name}: agentrl sft TRACES --model MODEL --out FOLDER"


@dataclass(frozen=True, slots=True)
class WarmLearnerSettings(LearnerSettings):
    """`[learner]`: as in training, with defaults for a warm start."""

    learning_rate: Amount = 2e-5
    """The largest; it rises and falls with the steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """How slowly the optimizer's averages move."""
    micro_batch_tokens: Count = 4096
    """Tokens of one forward and backward pass, padding included."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if self.place != "thread" or self.ranks > 1 or self.mini_batch or self.epochs > 1:
            text = "a warm start takes one optimizer step a batch, in this process: leave learner.place, "
            yield (
                ("place", "ranks"),
                text + "ranks, mini_batch and epochs as they are (sft.batch, sft.epochs)",
            )


@dataclass(frozen=True, slots=True)
class SftSettings:
    """A whole warm start."""

    model: ModelSettings = field(default_factory=ModelSettings)
    sft: WarmStartSettings = field(default_factory=WarmStartSettings)
    learner: WarmLearnerSettings = field(default_factory=WarmLearnerSettings)


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


OnStep = Callable[[int, int, "StepMetrics"], None]
"""Is told the number of a step, the number of all steps, and what happened."""


def fine_tune(settings: SftSettings, on_step: OnStep | None = None) -> SftResult:
    """Train a Hugging Face model on traces and write weights and tokenizer to `sft.out`.

    Raises:
        DataError: the traces cannot be used.
        ConfigError: there is no model at `model.path`.
        AgentRLError: the disk does not take the weights; no half of them is left.
    """
    traces = load_traces(settings.sft.traces)[: settings.sft.limit or None]
    if (Path(settings.sft.out) / "config.json").exists():
        raise ConfigError(f"{settings.sft.out} holds a model already; choose another --out")
    import torch

    from agentrl.learner.learner import Learner

    tokenizer = load_tokenizer(settings.model.path, "--model")
    chosen = cast("Any", settings.sft.format)
    rendered = render_traces(traces, tokenizer, chosen, max_tokens=settings.sft.max_tokens)
    learner = Learner(settings.model, settings.learner, LossSettings("cross_entropy"), seed=settings.sft.seed)
    outcome = learn(learner, rendered.segments, settings.sft, settings.learner.learning_rate, on_step)
    result = SftResult(
        traces=len(rendered.segments),
        too_long=rendered.too_long,
        unlearned_reasoning=rendered.unlearned_reasoning,
        format=rendered.format,
        learned_tokens=rendered.learned_tokens,
        **outcome,
    )
    learner.model.to(torch.bfloat16)
    with whole_folder(Path(settings.sft.out)) as folder:
        learner.save_weights(folder)
        (folder / WARM_START).write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    return result


def learn(
    learner: Learner,
    segments: Sequence[Segment],
    settings: WarmStartSettings,
    learning_rate: float,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train in place; returns `steps`, `loss_first`, `loss_last` (held out), `wall_s`, `cpu_s`, `history`.

    Raises:
        DataError: no token to learn.
        LearnerError: loss or gradient is not finite.
    """
    order = random.Random(settings.seed)
    episodes = [_episode(at, segment) for at, segment in enumerate(segments) if segment.num_sampled]
    if not episodes:
        raise DataError("the traces have no token to learn")
    order.shuffle(episodes)
    keep = min(settings.held_out, len(episodes) // 5)
    held, episodes = episodes[len(episodes) - keep :], episodes[: len(episodes) - keep]
    started, cpu = time.monotonic(), time.process_time()
    loss_first, history = mean_loss(learner, held), list[dict[str, float]]()
    steps = settings.epochs * math.ceil(len(episodes) / settings.batch)
    for _ in range(settings.epochs):
        order.shuffle(episodes)
        for at in range(0, len(episodes), settings.batch):
            batch = episodes[at : at + settings.batch]
            rate = learning_rate * learning_rate_share(len(history), steps, settings)
            done = learner.step(batch, [1.0] * len(batch), controls={"learner.learning_rate": rate})
            history.append(
                {"loss": done.loss, "learning_rate": done.learning_rate, "grad_norm": done.grad_norm}
            )
            if on_step is not None:
                on_step(len(history), steps, done)
    return {
        "steps": len(history),
        "loss_first": loss_first,
        "loss_last": mean_loss(learner, held),
        "wall_s": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "history": history,
    }


def learning_rate_share(step: int, steps: int, settings: WarmStartSettings) -> float:
    """Share of the largest learning rate at step `step` (from 0) of `steps`: warm-up, then half a cosine."""
    warmup = max(1, round(settings.warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress, low = (step - warmup) / max(1, steps - warmup), settings.final_share
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def mean_loss(learner: Learner, episodes: Sequence[Episode]) -> float:
    """Mean -log p over the learned tokens, nats; NaN without any."""
    tokens = sum(episode.num_sampled for episode in episodes)
    scores = (part for parts in learner.score(episodes) for part in parts)
    return -math.fsum(float(part.sum()) for part in scores) / tokens if tokens else math.nan


def _episode(index: int, segment: Segment) -> Episode:
    """A trace as the learner takes it; what it is worth does not matter to the loss."""
    name = f"trace {index}"
    return Episode(name, index, name, (segment,), (), 0.0, StopReason.ANSWERED, 0, 1.0)


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
