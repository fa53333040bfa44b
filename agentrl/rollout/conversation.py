"""The state of one episode in flight: its turns, messages and calls, whoever asks for the next message.

The loop that plays an environment, sub-agents and programs behind the gateway all speak through it, so that
each message is a turn of the episode with tokens of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentrl.config.settings import RolloutSettings
from agentrl.episode import StopReason, ToolCallRecord, Turn
from agentrl.renderers.text import cut_text
from agentrl.rollout.completer import PLAIN, Completer, Dispatch, MessageOptions, Reply
from agentrl_envs import Env, Message, SandboxFailure, ToolCall, ToolResult, ToolSpec


@dataclass(slots=True, kw_only=True)
class Conversation:
    """The state of one episode in flight, and what is said in it."""

    completer: Completer
    row: Mapping[str, Any]
    dispatch: Dispatch
    settings: RolloutSettings
    temperature: float
    """Of every message."""
    env: Env | None = None
    speaking: bool = False
    """Whether the completer is waited for, and is who breaks if something breaks now."""
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    tool_seconds: float = 0.0
    grade_seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter[str])
    limit: StopReason | None = None
    """The limit that ended a message, or left no room for one."""
    broken: BaseException | None = None
    """What broke the completer while an environment or a program asked it."""
    one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Messages are sampled in the order they are asked for, so that each has a random stream of its own."""

    def whole(self) -> None:
        """Raise what broke the completer, also where an environment passed over it."""
        if self.broken is not None:
            self.speaking = True
            raise self.broken

    async def say(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: MessageOptions = PLAIN
    ) -> Reply:
        """The next message of any conversation of the episode, recorded as a turn."""
        async with self.one_by_one:
            self.speaking = True
            reply = await self.completer.complete(messages, tools, options)
            self.speaking = False
            start, end = reply.span
            self.turns.append(Turn(segment=reply.segment, start=start, end=end, text=reply.text))
            for call in reply.tool_calls:
                if call.loose:
                    self.counts[f"loose/{call.loose}"] += 1
            return replace(reply, turn=len(self.turns) - 1)

    def unread(self, reply: Reply) -> None:
        """Nobody read a message: it stays for people, and its tokens are not learned from."""
        self.completer.discard(reply)
        self.turns[reply.turn] = replace(self.turns[reply.turn], start=0, end=0)

    def acted(self, turn: int, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> list[Message]:
        """Record what a turn's calls gave; as messages, cut to what the model is shown.

        Raises:
            SandboxFailure: the machinery of a tool broke.
        """
        broken = next((result for result in results if result.infrastructure_failure), None)
        if broken is not None:
            raise SandboxFailure(f"tool {broken.name}: {broken.text}")
        # What is kept is what the model is shown; a tool may have returned megabytes.
        limit = self.settings.tool_output_chars
        shown = [replace(result, text=cut_text(result.text, limit)) for result in results]
        self.results += shown
        self.turns[turn] = replace(self.turns[turn], tool_calls=_records(calls, shown))
        return [{"role": "tool", "name": r.name, "tool_call_id": r.call_id, "content": r.text} for r in shown]


def _records(calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> tuple[ToolCallRecord, ...]:
    return tuple(
        ToolCallRecord(
            name=call.name,
            arguments=call.arguments,
            result=result.text,
            status=result.status,
            seconds=result.seconds,
        )
        for call, result in zip(calls, results, strict=True)
    )
