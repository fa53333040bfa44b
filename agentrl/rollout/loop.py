"""Plays one episode: a conversation of an environment with a completer, turn by turn.

The environment's side is here: its tools, its replies, its reward, limits, and what becomes of anything that
breaks. How messages are sampled is left to the completer: `agentrl.rollout.token_completer` (tokens of an
engine), `agentrl.rollout.endpoint_completer` (messages of an endpoint). It knows nothing of other episodes.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

from agentrl.episode import Boundary, Episode, Failure, StopReason, Turn
from agentrl.errors import AgentRLError, DataError, PolicyError, RendererError, StallError
from agentrl.rollout.completer import Exhausted, Reply
from agentrl.rollout.conversation import Conversation
from agentrl.rollout.episode_model import EpisodeModel
from agentrl_envs import (
    Env,
    EnvError,
    Finish,
    Reward,
    SandboxFailure,
    ToolCall,
    ToolSpec,
    Transcript,
)
from agentrl_envs.context import Context
from agentrl_envs.model import Access
from agentrl_envs.raised import error_text, message_of, place
from agentrl_envs.user_code import Waits, ends, ends_caller

logger = logging.getLogger(__name__)

CLEANUP_LIMIT_S = 10.0
"""Longest wait for an environment to close and an engine to forget a session."""


@dataclass(slots=True)
class Outcome:
    """How an episode ended, before its reward is known."""

    stop_reason: StopReason
    answer: str | None = None
    finish: Finish | None = None
    """What ended the episode when the environment did."""


@dataclass(slots=True, kw_only=True)
class EpisodeLoop(Conversation):
    """Plays one episode."""

    async def play(self, make_env: Callable[[], Env]) -> Episode:
        """Play the episode and return it, failed or not.

        Raises:
            asyncio.CancelledError: the episode was cancelled.
            Exception: one that is fatal to the completer.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.limit_s):
                outcome, reward = await self._run(make_env)
            return self._episode(outcome, reward, None, time.monotonic() - started)
        except self.completer.fatal:
            raise
        except BaseException as error:
            if ends_caller(error):
                raise
            logger.debug("episode %s failed", self.dispatch.episode_id, exc_info=error)
            failure = self._classify(error)
            if isinstance(error, DataError):
                # What was returned may break an invariant; such tokens are not worth keeping.
                self.completer.forget()
                self.turns = [replace(turn, segment=0, start=0, end=0) for turn in self.turns]
            return self._episode(Outcome(StopReason.FAILED), None, failure, time.monotonic() - started)
        finally:
            await self._clean_up()

    async def _run(self, make_env: Callable[[], Env]) -> tuple[Outcome, Reward]:
        # What an episode changes in its row is its own: other episodes play the row as the data has it.
        self.row = copy.deepcopy(self.row)
        self.env = env = make_env()
        env.attach(EpisodeModel(self, _serve))
        try:
            self.messages += await env.start(self.row)
            outcome = await (self._left_to(env) if env.plays() else self._converse(env))
        except Finish as finish:
            outcome = Outcome(StopReason.FINISHED, answer=finish.answer, finish=finish)
        except EnvError:
            self.whole()
            raise
        self.whole()
        return outcome, await self._reward(env, outcome)

    async def _left_to(self, env: Env) -> Outcome:
        """Let the environment's own `play` take the turns."""
        answer = await env.play_out(self.row, self.settings.limit_s)
        return Outcome(self.limit) if self.limit else Outcome(StopReason.ANSWERED, answer=answer)

    async def _converse(self, env: Env) -> Outcome:
        """Take turns with the environment until the episode ends."""
        tools = env.tool_specs()
        context = env.converse(self.messages, tools)
        max_turns = self.settings.max_turns or env.max_turns
        for turn in range(max_turns):
            try:
                reply = await self._speak(env, context, tools)
            except Exhausted as limit:
                return Outcome(limit.reason)
            if reply.cut is not None:
                return Outcome(reply.cut)
            last = turn + 1 == max_turns
            if reply.tool_calls:
                if last:
                    break
                await self._act(env, reply.tool_calls)
                continue
            answer = await env.respond(reply.text)
            if answer is None:
                return Outcome(StopReason.ANSWERED, answer=reply.text)
            self.messages.append({"role": "user", "content": answer})
        return Outcome(StopReason.MAX_TURNS)

    async def _speak(self, env: Env, context: Context, tools: Sequence[ToolSpec]) -> Reply:
        """The next message of the episode; a conversation that grew too long is compacted before."""
        compacted = self._is_long(context) and await self._compact(env, context)
        try:
            reply = await self.say(self.messages, tools)
        except Exhausted as limit:
            if compacted or limit.reason is not StopReason.CONTEXT_FULL:
                raise
            if not await self._compact(env, context):
                raise
            reply = await self.say(self.messages, tools)
        self.messages.append(reply.message)
        return reply

    def _is_long(self, context: Context) -> bool:
        if self.settings.compact == "none" and not hasattr(self.env, "compact"):
            return False
        return context.share > self.settings.compact_at

    async def _compact(self, env: Env, context: Context) -> bool:
        """Let the environment shorten the conversation, or the setting; whether it changed."""
        before = list(self.messages)
        if hasattr(env, "compact"):
            await env.compact_context(context)
        else:
            await context.compact(self.settings.compact)
        self.whole()
        changed = before != self.messages
        self.counts["compactions"] += changed
        return changed

    async def _act(self, env: Env, calls: Sequence[ToolCall]) -> None:
        """Call tools for the newest turn, and add what the model is shown of their results.

        Raises:
            SandboxFailure: the machinery of a tool broke.
        """
        started, turn = time.monotonic(), len(self.turns) - 1
        self.calls += calls
        results = await env.call_tools(calls)
        self.whole()
        self.tool_seconds += time.monotonic() - started
        self.messages += self.acted(turn, calls, results)

    async def _reward(self, env: Env, outcome: Outcome) -> Reward:
        self.speaking = False
        if outcome.stop_reason.truncated and self.settings.truncated == "zero":
            return Reward(value=float(env.reward_range[0]), parts={}, verdict="truncated")
        transcript = Transcript(
            messages=tuple(self.messages),
            tool_calls=tuple(self.calls),
            tool_results=tuple(self.results),
            turns=len(self.turns),
            stop_reason=outcome.stop_reason.value,
        )
        started = time.monotonic()
        try:
            return await env.score(self.row, outcome.answer, transcript, finish=outcome.finish)
        finally:
            self.grade_seconds = time.monotonic() - started

    def _episode(
        self, outcome: Outcome, reward: Reward | None, failure: Failure | None, seconds: float
    ) -> Episode:
        dispatch = self.dispatch
        return Episode(
            episode_id=dispatch.episode_id,
            dispatch_index=dispatch.dispatch_index,
            prompt_id=dispatch.prompt_id,
            segments=self.completer.segments(),
            turns=self._rewarded_turns(),
            reward=None if reward is None else reward.value,
            reward_parts={} if reward is None else reward.parts,
            reward_range=(0.0, 1.0) if self.env is None else self.env.reward_range,
            verdict=None if reward is None else reward.verdict,
            stop_reason=outcome.stop_reason,
            failure=failure,
            start_version=dispatch.start_version,
            temperature=self.temperature,
            environment=dispatch.environment,
            answer=outcome.answer,
            seconds=seconds,
            tool_seconds=self.tool_seconds,
            grade_seconds=self.grade_seconds,
            group=dispatch.group,
            counts=dict(self.counts),
            agent_rewards={} if self.env is None or reward is None else dict(self.env.agent_rewards),
        )

    def _rewarded_turns(self) -> tuple[Turn, ...]:
        """The turns, each with what the environment gave it."""
        given = {} if self.env is None else self.env.turn_rewards
        return tuple(replace(turn, reward=given.get(at)) for at, turn in enumerate(self.turns))

    def _classify(self, error: BaseException) -> Failure:
        """Name the boundary that broke, and where in the user's files."""
        boundary: Boundary = self.completer.boundary if self.speaking else "env"
        if isinstance(error, SandboxFailure) or type(error).__module__.startswith("agentrl_sandbox"):
            boundary = "sandbox"
        elif isinstance(error, PolicyError):
            boundary = "policy"
        elif isinstance(error, RendererError):
            boundary = "renderer"
        if isinstance(error, TimeoutError) and not str(error):
            owners = {"env": "the environment", "sandbox": "the sandbox", "renderer": "the renderer"}
            owner = owners.get(boundary, self.completer.speaker)
            remedy = "raise `rollout.limit_s` if this is how long it takes"
            error = StallError(owner, self.settings.limit_s, remedy)
        message = message_of(error, 2000)
        ours = isinstance(error, AgentRLError | EnvError)
        if where := getattr(error, "where", "") if ours else place(error):
            message += f" ({where})"
        return Failure(boundary=boundary, error=type(error).__name__, message=message)

    async def _clean_up(self) -> None:
        """Close what the episode opened, to the end even when the episode is cancelled meanwhile."""
        closing = asyncio.ensure_future(self._close())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)
        await asyncio.shield(closing)

    async def _close(self) -> None:
        waits = Waits()
        with waits.counted():
            steps = [self.completer.release(), *([] if self.env is None else [self.env.aclose()])]
            tasks = [asyncio.ensure_future(step) for step in steps]
        for task in tasks:
            if error := await _failure(task, waits):
                logger.warning("episode %s: closing failed: %s", self.dispatch.episode_id, error_text(error))


async def _failure(task: asyncio.Future[Any], waits: Waits) -> BaseException | None:
    """What kept a clean-up from its end, if anything."""
    if not await ends(task, CLEANUP_LIMIT_S, waits):
        task.cancel()
        return TimeoutError(f"it did not end within {CLEANUP_LIMIT_S:g} s")
    return asyncio.CancelledError() if task.cancelled() else task.exception()


_CLOSING: set[asyncio.Future[None]] = set()
"""Clean-ups that a cancelled episode left behind; kept so that they are not collected before they end."""


def _serve(model: EpisodeModel) -> AbstractAsyncContextManager[Access]:
    # The server is imported by the episodes that have programs.
    from agentrl.rollout.gateway.server import serve

    return serve(model)
