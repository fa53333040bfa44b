"""The model of one episode as its environment has it: sub-agents, games of several agents, programs.

Whatever is asked becomes a turn of the episode with exact tokens, in the segment of its conversation. Knows
nothing of tokens itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from agentrl.rollout.completer import Exhausted, MessageOptions, Reply
from agentrl.rollout.conversation import Conversation
from agentrl_envs import Message, ToolResult, ToolSpec
from agentrl_envs.model import Access, ModelFailure
from agentrl_envs.raised import error_text
from agentrl_envs.user_code import ends_caller

PARTNER_KEY = "AGENTRL_PARTNER_KEY"


@dataclass(slots=True)
class EpisodeModel:
    """Speaks for one environment."""

    conversation: Conversation
    server: Callable[[EpisodeModel], AbstractAsyncContextManager[Access]]
    """Opens the gateway for this model."""

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, agent: str = "agent"
    ) -> Reply:
        """The next message; an empty one with `cut` set where a limit leaves no room.

        Raises:
            ModelFailure: the completer broke; the episode fails with its own error.
        """
        try:
            reply = await self.ask(messages, tools, MessageOptions(agent=agent))
        except Exhausted as limit:
            return Reply("", (), {"role": "assistant", "content": ""}, cut=limit.reason)
        if self.conversation.env is not None:
            self.conversation.env.spoke()
        return reply

    async def ask(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: MessageOptions
    ) -> Reply:
        """The next message.

        Raises:
            Exhausted: a limit of the episode leaves no room for one.
            ModelFailure: the completer broke, now or before.
        """
        of = self.conversation
        if of.broken is not None:
            raise ModelFailure(f"the model of this episode broke before: {error_text(of.broken)}")
        try:
            reply = await of.say(messages, tools, options)
        except Exhausted as limit:
            of.limit = of.limit or limit.reason
            raise
        except BaseException as error:
            if ends_caller(error):
                raise
            of.broken = of.broken or error
            raise ModelFailure(f"the model of this episode broke: {error_text(error)}") from error
        of.limit = of.limit or reply.cut
        if options.agent == "agent" and of.env is not None and of.env.plays():
            of.messages[:] = [*messages, reply.message]
        return reply

    def size(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[int, int]:
        """Tokens that `messages` take and that the context holds; (0, 0) where nobody knows."""
        return self.conversation.completer.size(messages, tools)

    def acted(self, spoken: Any, results: Sequence[ToolResult]) -> list[Message]:
        """Record the results of a message's calls; as messages."""
        self.conversation.calls += spoken.tool_calls
        return self.conversation.acted(spoken.turn, spoken.tool_calls, results)

    def count(self, name: str, by: int = 1) -> None:
        """Count something of the episode."""
        self.conversation.counts[name] += by

    def serve(self) -> AbstractAsyncContextManager[Access]:
        """Let programs reach this model over HTTP while the context is open."""
        return self.server(self)

    async def partner(self, messages: Sequence[Message]) -> str:
        """The next message of the model at `rollout.partner_url`, which is not trained.

        Raises:
            ModelFailure: there is none, or it does not answer.
        """
        from agentrl.rollout.partner import ask_partner

        settings = self.conversation.settings
        if not settings.partner_url or not settings.partner_model:
            raise ModelFailure(
                "the environment asks for a partner: set rollout.partner_url and partner_model"
            )
        self.count("partner_messages")
        return await ask_partner(settings, messages, os.environ.get(PARTNER_KEY, ""))
