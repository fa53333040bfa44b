"""Plays one episode with an endpoint: messages instead of tokens, for evaluation only.

The same environments, limits and stop reasons as `agentrl.rollout.token_completer`; there are no token ids,
so the episode has one empty segment and cannot be learned from. Tools are called natively, or by code blocks
for models and servers without tool support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, Segment, SegmentBuilder, StopReason, Turn
from agentrl.errors import ContextOverflow
from agentrl.inference.endpoint.client import ChatReply, EndpointPolicy
from agentrl.inference.endpoint.errors import BudgetExceeded, EndpointRefused
from agentrl.inference.endpoint.settings import Usage
from agentrl.renderers.code import CLOSE, INSTRUCTIONS, OPEN
from agentrl.renderers.text import fenced_code
from agentrl.rollout.loop import Conversation, Decoding, Dispatch, Outcome
from agentrl_envs import Env, Message, ToolCall, ToolSpec, text_of

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


@dataclass(slots=True, kw_only=True)
class _ChatConversation(Conversation):
    """The state of one episode in flight, message by message."""

    endpoint: EndpointPolicy
    tool_format: ToolFormat
    usage: Usage = field(default_factory=Usage)
    response: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])

    speaker = "the endpoint"
    fatal = (BudgetExceeded, EndpointRefused)

    async def converse(self, env: Env) -> Outcome:
        """Exchange messages until the episode ends."""
        self.messages = _opening(await env.start(self.row), env.tool_specs(), self.tool_format)
        max_turns = self.settings.max_turns or env.max_turns
        for turn in range(max_turns):
            budget = self.settings.max_tokens - self.usage.completion_tokens
            if self.settings.max_turn_tokens:
                budget = min(budget, self.settings.max_turn_tokens)
            if budget < 1:
                return Outcome(StopReason.MAX_TOKENS)
            try:
                reply, calls = await self._speak(budget, turn, env.tool_specs())
            except ContextOverflow:
                if not self.turns:
                    raise
                return Outcome(StopReason.CONTEXT_FULL)
            if reply.finish_reason == "length":
                return Outcome(StopReason.MAX_TOKENS)
            last = turn + 1 == max_turns
            if calls and last:
                return Outcome(StopReason.MAX_TURNS)
            if calls:
                await self._act(env, calls)
                continue
            answer = await self.listen(env, reply.text)
            if answer is None:
                return Outcome(StopReason.ANSWERED, reply.text)
            if not last:
                self.messages.append({"role": "user", "content": answer})
        return Outcome(StopReason.MAX_TURNS)

    async def _speak(
        self, budget: int, turn: int, tools: Sequence[ToolSpec]
    ) -> tuple[ChatReply, tuple[ToolCall, ...]]:
        self.boundary = "policy"
        native = self.tool_format == "native"
        sampling = self.sampling(budget, turn, stop=(CLOSE,) if tools and not native else ())
        reply = await self.endpoint.chat(self.messages, tools if native else (), sampling)
        calls = reply.tool_calls
        if not native:
            reply, calls = _read_code(reply, tools, len(self.turns))
        self.usage += reply.usage
        self.messages.append(reply.message)
        self.turns.append(Turn(segment=0, start=0, end=0, text=reply.text))
        self.reasoning.append(reply.reasoning)
        self.response += [f"<think>\n{reply.reasoning}\n</think>"] * bool(reply.reasoning) + [reply.text]
        return reply, calls

    async def _act(self, env: Env, calls: Sequence[ToolCall]) -> None:
        _, shown = await self.act(env, calls)
        for result in shown:
            self.response.append(result.text)
            if self.tool_format == "native":
                self.messages.append({"role": "tool", "tool_call_id": result.call_id, "content": result.text})
            else:
                text = f"<interpreter>\n{result.text}\n</interpreter>"
                self.messages.append({"role": "user", "content": text})

    def segments(self) -> tuple[Segment, ...]:
        """One without tokens, which is not learned from."""
        return (SegmentBuilder(model=self.endpoint.settings.model, trainable=False).build(),)


def _opening(
    messages: Sequence[Message], tools: Sequence[ToolSpec], tool_format: ToolFormat
) -> list[Message]:
    """The first messages; code blocks are explained before the first user message."""
    opening = [dict(message) for message in messages]
    first = next((message for message in opening if message["role"] == "user"), None)
    if tools and tool_format == "code" and first is not None:
        first["content"] = f"{INSTRUCTIONS}\n\n{text_of(first)}"
    return opening


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
    chat = _ChatConversation(
        endpoint=endpoint,
        tool_format=tool_format,
        row=row,
        dispatch=dispatch,
        settings=settings,
        decoding=decoding,
    )
    episode = await endpoint.hold(lambda: chat.play(make_env))
    return ChatResult(
        episode, chat.usage, tuple(chat.messages), "\n".join(chat.response), tuple(chat.reasoning)
    )
