"""One episode as a conversation of an environment with whoever speaks: what token and chat episodes share.

The environment's side is here: its tools, its replies, its reward, limits, and what becomes of anything
that breaks. How messages are sampled is left to `agentrl.rollout.token_completer` (tokens of an engine) and
`agentrl.rollout.endpoint_completer` (messages of an endpoint). It knows nothing of other episodes.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Boundary, Episode, Failure, Segment, StopReason, ToolCallRecord, Turn
from agentrl.errors import AgentRLError, PolicyError, RendererError, StallError
from agentrl.inference.policy import Sampling
from agentrl.renderers.text import cut_text
from agentrl_envs import (
    Env,
    EnvError,
    Finish,
    Message,
    Reward,
    SandboxFailure,
    ToolCall,
    ToolResult,
    Transcript,
)
from agentrl_envs.raised import error_text, message_of, place
from agentrl_envs.user_code import Waits, ends, ends_caller

logger = logging.getLogger(__name__)

CLEANUP_LIMIT_S = 10.0
"""Longest wait for an environment to close and an engine to forget a session."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What is decided about an episode before it starts."""

    episode_id: str
    dispatch_index: int
    prompt_id: str
    start_version: int
    environment: str = ""
    seed: int | None = None
    """Makes the random stream of the episode its own; None draws from the engine's."""
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """How every message of an episode is sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(slots=True)
class Outcome:
    """How an episode ended, before its reward is known."""

    stop_reason: StopReason
    answer: str | None = None
    finish: Finish | None = None
    """What ended the episode when the environment did."""


@dataclass(slots=True, kw_only=True)
class Conversation(ABC):
    """The state of one episode in flight."""

    row: Mapping[str, Any]
    dispatch: Dispatch
    settings: RolloutSettings
    decoding: Decoding
    env: Env | None = None
    boundary: Boundary = "env"
    """Who is waited for, and who broke if something breaks now."""
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    tool_seconds: float = 0.0

    speaker: ClassVar[str] = "the engine"
    """Who samples the messages, in errors."""
    fatal: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors after which no episode can go on: they are raised."""

    @abstractmethod
    async def converse(self, env: Env) -> Outcome:
        """Take turns with the environment until the episode ends."""

    @abstractmethod
    def segments(self) -> tuple[Segment, ...]:
        """The tokens of the episode."""

    async def release(self) -> None:  # noqa: B027 - most keep nothing
        """Let go of what the speaker keeps for this episode."""

    def broke(self, error: BaseException) -> None:  # noqa: B027 - most keep all
        """Something broke: forget what is not worth keeping."""

    async def play(self, make_env: Callable[[], Env]) -> Episode:
        """Play the episode and return it, failed or not.

        Raises:
            asyncio.CancelledError: the episode was cancelled.
            Exception: one of `fatal`.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.limit_s):
                outcome, reward = await self._run(make_env)
            return self._episode(outcome, reward, None, time.monotonic() - started)
        except self.fatal:
            raise
        except BaseException as error:
            if ends_caller(error):
                raise
            logger.debug("episode %s failed", self.dispatch.episode_id, exc_info=error)
            failure = self._classify(error)
            self.broke(error)
            return self._episode(Outcome(StopReason.FAILED), None, failure, time.monotonic() - started)
        finally:
            await self._clean_up()

    async def _run(self, make_env: Callable[[], Env]) -> tuple[Outcome, Reward]:
        self.boundary = "env"
        # What an episode changes in its row is its own: other episodes play the row as the data has it.
        self.row = copy.deepcopy(self.row)
        self.env = env = make_env()
        try:
            outcome = await self.converse(env)
        except Finish as finish:
            outcome = Outcome(StopReason.FINISHED, answer=finish.answer, finish=finish)
        return outcome, await self._reward(env, outcome)

    def sampling(
        self, budget: int, turn: int, *, stop: tuple[str, ...] = (), stop_token_ids: tuple[int, ...] = ()
    ) -> Sampling:
        """How the message of a turn is sampled, with a random stream of its own."""
        seed = self.dispatch.seed
        return Sampling(
            max_new_tokens=budget,
            temperature=self.decoding.temperature,
            top_p=self.decoding.top_p,
            top_k=self.decoding.top_k,
            stop=stop,
            stop_token_ids=stop_token_ids,
            seed=None if seed is None else (seed * 1_000_003 + turn) % 2**62,
        )

    async def act(
        self, env: Env, calls: Sequence[ToolCall]
    ) -> tuple[Sequence[ToolResult], Sequence[ToolResult]]:
        """Call tools for the newest turn; returns their results in full, and as the model is shown them.

        Raises:
            SandboxFailure: the machinery of a tool broke.
        """
        self.boundary = "env"
        started = time.monotonic()
        self.calls += calls
        results = await env.call_tools(calls)
        self.tool_seconds += time.monotonic() - started
        broken = next((result for result in results if result.infrastructure_failure), None)
        if broken is not None:
            raise SandboxFailure(f"tool {broken.name}: {broken.text}")
        # What is kept is what the model is shown; a tool may have returned megabytes.
        limit = self.settings.tool_output_chars
        shown = [replace(result, text=cut_text(result.text, limit)) for result in results]
        self.results += shown
        self.turns[-1] = replace(self.turns[-1], tool_calls=_records(calls, shown))
        return results, shown

    async def listen(self, env: Env, text: str) -> str | None:
        """What the environment replies to a message that calls no tool; None ends the episode."""
        self.boundary = "env"
        return await env.respond(text)

    async def _reward(self, env: Env, outcome: Outcome) -> Reward:
        self.boundary = "env"
        if outcome.stop_reason.truncated and self.settings.truncated == "zero":
            return Reward(value=float(env.reward_range[0]), parts={}, verdict="truncated")
        transcript = Transcript(
            messages=tuple(self.messages),
            tool_calls=tuple(self.calls),
            tool_results=tuple(self.results),
            turns=len(self.turns),
            stop_reason=outcome.stop_reason.value,
        )
        return await env.score(self.row, outcome.answer, transcript, finish=outcome.finish)

    def _episode(
        self, outcome: Outcome, reward: Reward | None, failure: Failure | None, seconds: float
    ) -> Episode:
        dispatch = self.dispatch
        return Episode(
            episode_id=dispatch.episode_id,
            dispatch_index=dispatch.dispatch_index,
            prompt_id=dispatch.prompt_id,
            segments=self.segments(),
            turns=self._rewarded_turns(),
            reward=None if reward is None else reward.value,
            reward_parts={} if reward is None else reward.parts,
            reward_range=(0.0, 1.0) if self.env is None else self.env.reward_range,
            verdict=None if reward is None else reward.verdict,
            stop_reason=outcome.stop_reason,
            failure=failure,
            start_version=dispatch.start_version,
            temperature=self.decoding.temperature,
            environment=dispatch.environment,
            answer=outcome.answer,
            seconds=seconds,
            tool_seconds=self.tool_seconds,
            group=dispatch.group,
        )

    def _rewarded_turns(self) -> tuple[Turn, ...]:
        """The turns, each with what the environment gave it."""
        given = {} if self.env is None else self.env.turn_rewards
        return tuple(replace(turn, reward=given.get(at)) for at, turn in enumerate(self.turns))

    def _classify(self, error: BaseException) -> Failure:
        """Name the boundary that broke, and where in the user's files."""
        boundary = self.boundary
        if isinstance(error, SandboxFailure) or type(error).__module__.startswith("agentrl_sandbox"):
            boundary = "sandbox"
        elif isinstance(error, PolicyError):
            boundary = "policy"
        elif isinstance(error, RendererError):
            boundary = "renderer"
        if isinstance(error, TimeoutError) and not str(error):
            owners = {"env": "the environment", "sandbox": "the sandbox", "renderer": "the renderer"}
            owner = owners.get(boundary, self.speaker)
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
            steps = [self.release()] if self.env is None else [self.release(), self.env.aclose()]
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
