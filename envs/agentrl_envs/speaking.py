"""What an environment may ask of the policy besides its turns: sub-agents, a look at the context, partners.

`Env` has these members. Each conversation has a segment of tokens of its own, and is learned from. Knows
nothing of how messages are sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .context import Context
from .errors import EnvError, RewardError
from .messages import Message, ToolSpec
from .model import Model
from .raised import shown
from .tools import tools_of
from .tools.running import run_tool

__all__ = ["Speaking"]

AGENT_TURNS = 8


class Speaking:
    """Members of `Env` that reach the model of its episode."""

    _model: Model | None
    _context: Context | None
    _agent_rewards: dict[str, float]

    @property
    def speaker(self) -> Model:
        """The model of this episode, as `await self.speaker.complete(messages, tools)`.

        EnvError outside of an episode (`agentrl check` calls tools without a model).
        """
        if self._model is None:
            raise EnvError(
                f"{type(self).__name__} asks for the model of its episode, and no episode is played"
            )
        return self._model

    @property
    def context(self) -> Context:
        """The conversation of the episode, to be looked at and shortened; EnvError before it has begun."""
        if self._context is None:
            raise EnvError(f"{type(self).__name__}.context: the conversation has not begun")
        return self._context

    async def agent(
        self,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[str | Callable[..., Any]] = (),
        name: str = "helper",
        max_turns: int = AGENT_TURNS,
    ) -> str:
        """Let the policy work on `prompt` in a conversation of its own; the text of its last message.

        The conversation has a segment of its own. It shares the reward of the episode, unless
        `reward_agent(name, ...)` gives it another. Its tokens count for `rollout.max_tokens`.

        Args:
            prompt: text of the first user message, or messages.
            tools: of this environment, by name or as methods.
            name: of the agent, in segments, metrics and `reward_agent`.
            max_turns: messages it may write.

        Raises:
            EnvError: a tool that is none of this environment's.
        """
        env: Any = self
        offered = _chosen(env, tools)
        opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages: list[Message] = [dict(message) for message in opening]
        self.speaker.count("agents")
        text = ""
        for turn in range(max_turns):
            said = await self.speaker.complete(
                messages, [bound.spec for bound in offered.values()], agent=name
            )
            text = said.text
            if said.cut is not None or not said.tool_calls or turn + 1 == max_turns:
                break
            results = [await run_tool(env, offered, call, env._thread) for call in said.tool_calls]
            messages += [said.message, *self.speaker.acted(said, results)]
        return text

    def reward_agent(self, name: str, value: float) -> None:
        """Give all segments of one agent a reward of their own, instead of the episode's.

        It counts where the estimator credits agents (`estimator.kind = "agents"`), and stands in
        `Episode.agent_rewards` otherwise. The episode's own agent is called "agent".

        Raises:
            RewardError: the value is no number in `reward_range`.
        """
        low, high = getattr(self, "reward_range", (0.0, 1.0))
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise RewardError(
                f"{type(self).__name__}.reward_agent({name!r}) was given {shown(value)}; want a number in "
                f"reward_range ({low:g}, {high:g})"
            )
        self._agent_rewards[name] = number

    @property
    def agent_rewards(self) -> Mapping[str, float]:
        """What `reward_agent` was given."""
        return self._agent_rewards

    def attach(self, model: Model) -> None:
        """Give the environment the model of its episode. Called by the rollout."""
        self._model = model

    def converse(self, messages: list[Message], tools: Sequence[ToolSpec]) -> Context:
        """The context of the conversation that now begins. Called by the rollout."""
        self._context = Context(messages, self.speaker, tools)
        return self._context


def _chosen(env: Any, tools: Sequence[str | Callable[..., Any]]) -> dict[str, Any]:
    """The tools of an environment that are meant by names or methods, by the name that the model uses."""
    known = tools_of(type(env), env.tool_timeout_s)
    by_attribute = {bound.attribute: bound for bound in known.values()}
    chosen: dict[str, Any] = {}
    for given in tools:
        name = given if isinstance(given, str) else getattr(given, "__name__", str(given))
        bound = known.get(name) or by_attribute.get(name)
        if bound is None:
            raise EnvError(f"{type(env).__name__} has no tool {name!r}; it has: {', '.join(known) or 'none'}")
        chosen[bound.spec.name] = bound
    return chosen
