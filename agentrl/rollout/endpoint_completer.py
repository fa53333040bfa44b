"""Completes conversations by asking an endpoint: messages instead of tokens, for evaluation only.

The same environments, limits and stop reasons as `agentrl.rollout.token_completer`; there are no token ids,
so the episode has one empty segment and cannot be learned from. Tools are called natively, or by code blocks
for models and servers without tool support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Boundary, Episode, Segment, SegmentBuilder, StopReason
from agentrl.errors import ContextOverflow
from agentrl.inference.endpoint.client import ChatReply, EndpointPolicy
from agentrl.inference.endpoint.errors import BudgetExceeded, EndpointRefused
from agentrl.inference.endpoint.settings import Usage
from agentrl.renderers.code import CLOSE, INSTRUCTIONS, OPEN, with_instructions
from agentrl.renderers.text import fenced_code
from agentrl.rollout.completer import PLAIN, Decoding, Dispatch, Exhausted, MessageOptions, Reply
from agentrl.rollout.loop import EpisodeLoop
from agentrl_envs import Env, Message, ToolCall, ToolSpec

ToolFormat = Literal["native", "code"]


@dataclass(frozen=True, slots=True)
class ChatResult:
    """One episode, and what it cost."""

    episode: Episode
    usage: Usage
    messages: tuple[Message, ...]
    """The conversation, for people."""
    response: str = ""
    """All that came after the prompt as one text: reasoning in `<think>` tags, messages, tool output."""
    reasoning: tuple[str, ...] = ()
    """Of each turn: thinking that came apart from its text."""


@dataclass(slots=True)
class EndpointCompleter:
    """Asks an endpoint for each message."""

    endpoint: EndpointPolicy
    dispatch: Dispatch
    settings: RolloutSettings
    decoding: Decoding
    tool_format: ToolFormat
    boundary: Boundary = "policy"
    usage: Usage = field(default_factory=Usage)
    reasoning: list[str] = field(default_factory=list[str])

    speaker: ClassVar[str] = "the endpoint"
    fatal: ClassVar[tuple[type[Exception], ...]] = (BudgetExceeded, EndpointRefused)

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: MessageOptions = PLAIN
    ) -> Reply:
        """Ask for the next message.

        Raises:
            Exhausted: the endpoint's context or the episode's tokens are used up.
            ContextOverflow: the first prompt leaves no room at all.
        """
        turn = len(self.reasoning)
        budget = self.settings.max_tokens - self.usage.completion_tokens
        if self.settings.max_turn_tokens:
            budget = min(budget, self.settings.max_turn_tokens)
        if budget < 1:
            raise Exhausted(StopReason.MAX_TOKENS)
        native = self.tool_format == "native"
        sent = _native(messages) if native else _as_code(messages, tools)
        stop = (*((CLOSE,) if tools and not native else ()), *options.stop)
        asked = min(budget, options.max_tokens or budget)
        sampling = self.decoding.sampling(asked, self.dispatch.seed, turn, stop=stop)
        try:
            reply = await self.endpoint.chat(sent, tools if native else (), sampling)
        except ContextOverflow as error:
            if not turn:
                raise
            raise Exhausted(StopReason.CONTEXT_FULL) from error
        calls = reply.tool_calls
        if not native:
            reply, calls = _read_code(reply, tools, turn)
        self.usage += reply.usage
        self.reasoning.append(reply.reasoning)
        ended = reply.finish_reason != "length"
        cut = None if ended or asked < budget else StopReason.MAX_TOKENS
        return Reply(reply.text, calls, reply.message, cut, ended=ended)

    def size(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, int]:
        """Endpoints do not say before they are asked."""
        return 0, 0

    def discard(self, reply: Reply) -> None:
        """Nothing is learned from an endpoint."""

    def segments(self) -> tuple[Segment, ...]:
        """One without tokens, which is not learned from."""
        return (SegmentBuilder(model=self.endpoint.settings.model, trainable=False).build(),)

    def forget(self) -> None:
        """There are no tokens."""

    async def release(self) -> None:
        """An endpoint keeps nothing."""


def _native(messages: Sequence[Message]) -> list[Message]:
    """The messages as endpoints take them: tool results have no name."""
    return [
        {key: value for key, value in message.items() if key != "name"}
        if message["role"] == "tool"
        else message
        for message in messages
    ]


def _as_code(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """The messages with tool results as a user's, and code blocks explained before the first user message."""
    sent = [
        {"role": "user", "content": f"<interpreter>\n{message['content']}\n</interpreter>"}
        if message["role"] == "tool"
        else dict(message)
        for message in messages
    ]
    return with_instructions(sent, INSTRUCTIONS if tools else "")


def _read_code(
    reply: ChatReply, tools: Sequence[ToolSpec], turn: int
) -> tuple[ChatReply, tuple[ToolCall, ...]]:
    """The call a reply's code block makes. Endpoints cut the stop text off; it is put back."""
    text = reply.text
    if tools and text.rfind(OPEN) > text.rfind(CLOSE) and reply.finish_reason == "stop":
        text += CLOSE
    begin = text.find(OPEN)
    end = text.find(CLOSE, begin) if begin >= 0 else -1
    if not tools or end < 0:
        return replace(reply, text=text, message={"role": "assistant", "content": text}), ()
    # What was written after the block was written without its result.
    text = text[: end + len(CLOSE)]
    code = fenced_code(text[begin + len(OPEN) : end])
    name = tools[0].name
    argument = next(iter(tools[0].parameters.get("properties", {})), "code")
    call = ToolCall(f"call_{turn}", name, {argument: code}, raw=text[begin:])
    return replace(reply, text=text, message={"role": "assistant", "content": text}), (call,)


async def run_chat_episode(
    make_env: Callable[[], Env],
    endpoint: EndpointPolicy,
    *,
    row: Mapping[str, Any],
    dispatch: Dispatch,
    settings: RolloutSettings,
    decoding: Decoding | None = None,
    tool_format: ToolFormat = "native",
) -> ChatResult:
    """Play one episode with an endpoint and return it, failed or not.

    Args:
        make_env: makes the environment's object for this episode alone.
        endpoint: answers messages.
        row: the data row; its answer never reaches the sandbox.
        dispatch: identity and seed.
        settings: limits; `format` is not used.
        decoding: temperature and truncation; `settings.temperature` where None.
        tool_format: native tool calls, or code blocks (one tool with one argument).

    Raises:
        BudgetExceeded: nothing more may be spent; no episode can go on. Those in flight have ended.
        EndpointRefused: the key, the model or the quota is wrong; likewise.
        asyncio.CancelledError: the episode was cancelled.
    """
    decoding = decoding or Decoding(temperature=settings.temperature)
    completer = EndpointCompleter(endpoint, dispatch, settings, decoding, tool_format)
    conversation = EpisodeLoop(
        completer=completer,
        row=row,
        dispatch=dispatch,
        settings=settings,
        temperature=decoding.temperature,
    )
    episode = await endpoint.hold(lambda: conversation.play(make_env))
    response: list[str] = []
    for turn, thought in zip(episode.turns, completer.reasoning, strict=False):
        response += [f"<think>\n{thought}\n</think>"] * bool(thought) + [turn.text]
        response += [call.result for call in turn.tool_calls]
    messages, reasoning = tuple(conversation.messages), tuple(completer.reasoning)
    return ChatResult(episode, completer.usage, messages, "\n".join(response), reasoning)
