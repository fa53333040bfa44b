"""Plays one episode: a policy and an environment take turns until the episode ends.

`run_episode` returns an `Episode` whatever happens: what breaks becomes `Episode.failure`, with the
boundary that broke. Cancellation passes through.
It knows nothing of other episodes, of batches, of baselines or of the learner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, Segment, SegmentBuilder, StopReason, Turn
from agentrl.errors import DataError
from agentrl.inference.policy import FinishReason, Generation, Policy
from agentrl.rollout.loop import Conversation, Decoding, Dispatch, Outcome
from agentrl_envs import Env, ToolCall, ToolResult

if TYPE_CHECKING:
    from agentrl.renderers.base import Renderer

__all__ = ["Decoding", "Dispatch", "episode_seed", "run_episode"]


def episode_seed(run_seed: int, kind: str, index: int) -> int:
    """Seed of one episode's random stream, from the run's seed and the order of dispatch."""
    digest = hashlib.blake2b(f"{run_seed}/{kind}/{index}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@dataclass(slots=True, kw_only=True)
class _TokenConversation(Conversation):
    """The state of one episode in flight, token by token."""

    policy: Policy
    renderer: Renderer
    segment: SegmentBuilder = field(default_factory=SegmentBuilder)

    async def converse(self, env: Env) -> Outcome:
        self.messages += await env.start(self.row)
        self.boundary = "renderer"
        self.segment.append_given(self.renderer.start(self.messages, env.tool_specs()))
        max_turns = self.settings.max_turns or env.max_turns
        for turn in range(max_turns):
            budget, full = self._budget()
            if budget < 1:
                if not self.turns:
                    # The prompt itself leaves no room: nobody's answer can be judged.
                    await self._generate(1, turn)
                return Outcome(full)
            text, calls, finish = await self._speak(budget, turn)
            if finish is FinishReason.LENGTH:
                return Outcome(full)
            last = turn + 1 == max_turns
            if calls and last:
                return Outcome(StopReason.MAX_TURNS)
            additions = await self._act(env, calls) if calls else await self._listen(env, text)
            if additions is None:
                return Outcome(StopReason.ANSWERED, answer=text)
            if last:
                return Outcome(StopReason.MAX_TURNS)
            if not self._append(additions, finish):
                return Outcome(StopReason.CONTEXT_FULL)
        return Outcome(StopReason.MAX_TURNS)

    def _budget(self) -> tuple[int, StopReason]:
        """Tokens the next message may have, and what it means to run out of them."""
        tokens = self.settings.max_tokens - self.segment.num_sampled
        if self.settings.max_turn_tokens:
            tokens = min(tokens, self.settings.max_turn_tokens)
        room = self.policy.context_tokens - len(self.segment)
        return (room, StopReason.CONTEXT_FULL) if room < tokens else (tokens, StopReason.MAX_TOKENS)

    async def _generate(self, budget: int, turn: int) -> Generation:
        self.boundary = "policy"
        renderer = self.renderer
        return await self.policy.generate(
            self.segment.token_ids,
            self.sampling(budget, turn, stop=renderer.stop, stop_token_ids=renderer.stop_token_ids),
            session=self.dispatch.episode_id,
            start_version=self.dispatch.start_version,
        )

    async def _speak(self, budget: int, turn: int) -> tuple[str, tuple[ToolCall, ...], FinishReason]:
        generation = await self._generate(budget, turn)
        self.boundary = "renderer"
        start, end = self.segment.append_sampled(
            generation.token_ids, generation.logprobs, generation.policy_versions
        )
        parsed = self.renderer.parse(generation.token_ids)
        self.messages.append(parsed.message)
        self.turns.append(Turn(segment=0, start=start, end=end, text=parsed.text))
        return parsed.text, parsed.tool_calls, generation.finish_reason

    async def _act(self, env: Env, calls: Sequence[ToolCall]) -> Sequence[ToolResult]:
        results, shown = await self.act(env, calls)
        self.messages += [
            {"role": "tool", "name": r.name, "tool_call_id": r.call_id, "content": r.text} for r in shown
        ]
        return results

    async def _listen(self, env: Env, text: str) -> str | None:
        reply = await self.listen(env, text)
        if reply is not None:
            self.messages.append({"role": "user", "content": reply})
        return reply

    def _append(self, additions: Sequence[ToolResult] | str, finish: FinishReason) -> bool:
        """Append what the environment added; False when it does not fit the context."""
        self.boundary = "renderer"
        turn = self.turns[-1]
        sampled = self.segment.token_ids[turn.start : turn.end]
        token_ids = self.renderer.extend(sampled, additions)
        if len(self.segment) + len(token_ids) >= self.policy.context_tokens:
            return False
        self.segment.append_given(token_ids)
        return True

    def segments(self) -> tuple[Segment, ...]:
        """One."""
        return (self.segment.build(),)

    async def release(self) -> None:
        """Let the engine forget the session."""
        await self.policy.release(self.dispatch.episode_id)

    def broke(self, error: BaseException) -> None:
        """What the engine returned may break an invariant; such tokens are not worth keeping."""
        if isinstance(error, DataError):
            self.segment, self.turns = SegmentBuilder(), []


async def run_episode(
    make_env: Callable[[], Env],
    policy: Policy,
    renderer: Renderer,
    *,
    row: Mapping[str, Any],
    dispatch: Dispatch,
    settings: RolloutSettings,
    decoding: Decoding | None = None,
) -> Episode:
    """Play one episode and return it, failed or not.

    Args:
        make_env: makes the environment's object for this episode alone.
        policy: samples the messages.
        renderer: messages to tokens and back.
        row: the data row; its answer never reaches the sandbox.
        dispatch: identity and policy version, fixed before the start.
        settings: limits and format.
        decoding: temperature and truncation; `settings.temperature` where None.

    Raises:
        asyncio.CancelledError: the episode was cancelled; nothing else is raised.
    """
    decoding = decoding or Decoding(temperature=settings.temperature)
    return await _TokenConversation(
        policy=policy, renderer=renderer, row=row, dispatch=dispatch, settings=settings, decoding=decoding
    ).play(make_env)
