"""Completes conversations with the tokens of an engine, and keeps them exactly as they were sampled.

`run_episode` plays one episode so and returns an `Episode` whatever happens: what breaks becomes
`Episode.failure`, with the boundary that broke. Cancellation passes through.
It knows nothing of other episodes, of batches, of baselines or of the learner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Boundary, Episode, Segment, SegmentBuilder, StopReason
from agentrl.inference.policy import FinishReason, Generation, Policy
from agentrl.renderers.base import refuse_pictures
from agentrl.rollout.completer import PLAIN, Decoding, Dispatch, Exhausted, MessageOptions, Reply
from agentrl.rollout.loop import EpisodeLoop
from agentrl_envs import Env, Message, ToolResult, ToolSpec

if TYPE_CHECKING:
    from agentrl.renderers.base import Renderer

__all__ = ["Decoding", "Dispatch", "TokenCompleter", "episode_seed", "run_episode"]


def episode_seed(run_seed: int, kind: str, index: int) -> int:
    """Seed of one episode's random stream, from the run's seed and the order of dispatch."""
    digest = hashlib.blake2b(f"{run_seed}/{kind}/{index}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@dataclass(slots=True)
class _Thread:
    """A conversation, and the one segment that holds its tokens."""

    messages: list[Message]
    tokens: SegmentBuilder
    tools: tuple[ToolSpec, ...] = ()
    agent: str = "agent"
    sampled_from: int = 0
    """Where the newest sampled message begins."""
    asked: bool = True
    """The next message is being sampled, or could not be: it is asked for again without adding anything."""
    unread: bool = False
    """Nobody read the newest sampled message: the segment ends before it."""

    def follows(self, messages: Sequence[Message]) -> bool:
        """Whether `messages` begin with this conversation."""
        known = len(self.messages)
        return not self.unread and list(messages[:known]) == self.messages

    def segment(self) -> Segment:
        """Its tokens, without a message that nobody read."""
        whole = self.tokens.build()
        return whole.until(self.sampled_from) if self.unread else whole


@dataclass(slots=True)
class TokenCompleter:
    """Keeps one segment for each conversation it is asked to go on with.

    A conversation that goes on from one of them with tool results, or with one user's message, is appended to
    its tokens. Any other, such as one whose history was edited, opens a segment of its own.
    """

    policy: Policy
    renderer: Renderer
    dispatch: Dispatch
    settings: RolloutSettings
    decoding: Decoding
    boundary: Boundary = "policy"
    replies: int = 0
    newest: int = 0
    """Conversation whose keys the engine has."""
    threads: list[_Thread] = field(default_factory=list[_Thread])

    speaker: ClassVar[str] = "the engine"
    fatal: ClassVar[tuple[type[Exception], ...]] = ()

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: MessageOptions = PLAIN
    ) -> Reply:
        """Sample the next message.

        Raises:
            Exhausted: the context or the episode's tokens are used up.
            ContextOverflow: the first prompt leaves no room at all.
            RendererError: a message has a part that is no text.
        """
        self.boundary = "renderer"
        refuse_pictures(messages)
        number, thread = self._continued(messages, tools, options.agent)
        extends = thread.tokens.num_sampled > 0
        budget, full = self._budget(thread.tokens)
        asked = min(budget, options.max_tokens or budget)
        if budget < 1 and self.replies:
            raise Exhausted(full)
        # Where the prompt itself leaves no room, nobody's answer can be judged: the engine says so.
        generation = await self._generate(number, thread.tokens, max(1, asked), options.stop)
        if budget < 1:
            raise Exhausted(full)
        self.boundary = "renderer"
        self.replies += 1
        if generation.prompt_features:
            thread.tokens.note_prompt(generation.prompt_features)
        start, end = thread.tokens.append_sampled(
            generation.token_ids,
            generation.logprobs,
            generation.policy_versions,
            generation.top_ids,
            generation.top_logprobs,
        )
        parsed = self.renderer.parse(generation.token_ids, tools)
        thread.messages, thread.sampled_from, thread.asked = [*messages, parsed.message], start, False
        ended = generation.finish_reason is not FinishReason.LENGTH
        cut = None if ended or asked < budget else full
        span = (start, end)
        return Reply(parsed.text, parsed.tool_calls, parsed.message, cut, number, span, extends, ended)

    def _continued(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], agent: str
    ) -> tuple[int, _Thread]:
        """The conversation that `messages` go on from, grown by them, or a new one."""
        number, thread, added = self._matched(messages, tools, agent)
        if thread is None:
            thread = _Thread(list(messages), SegmentBuilder(agent=agent), tuple(tools), agent)
            thread.tokens.append_given(self.renderer.start(messages, tools))
            self.threads.append(thread)
        elif not thread.asked:
            if len(thread.tokens) + len(added) >= self.policy.context_tokens:
                raise Exhausted(StopReason.CONTEXT_FULL)
            thread.tokens.append_given(added)
            thread.messages, thread.asked = list(messages), True
        return number, thread

    def _matched(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], agent: str
    ) -> tuple[int, _Thread | None, list[int]]:
        """The longest conversation that `messages` go on from, and the tokens that they add to it."""
        offered = tuple(tools)
        for number, thread in sorted(enumerate(self.threads), key=lambda item: -len(item[1].messages)):
            if thread.agent != agent or thread.tools != offered or not thread.follows(messages):
                continue
            known = len(thread.messages)
            if thread.asked and len(messages) == known:
                return number, thread, []
            additions = _additions(messages[known:])
            if additions is not None and not thread.asked:
                sampled = thread.tokens.token_ids[thread.sampled_from :]
                return number, thread, self.renderer.extend(sampled, additions)
        return len(self.threads), None, []

    def size(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], agent: str = "agent"
    ) -> tuple[int, int]:
        """Tokens that `messages` take, and those that the context holds."""
        _, thread, added = self._matched(messages, tools, agent)
        taken = len(self.renderer.start(messages, tools)) if thread is None else len(thread.tokens)
        return taken + len(added), self.policy.context_tokens

    def discard(self, reply: Reply) -> None:
        """The segment ends before a message that was never read."""
        self.threads[reply.segment].unread = True

    def _budget(self, tokens: SegmentBuilder) -> tuple[int, StopReason]:
        """Tokens the next message may have, and what it means to run out of them."""
        left = self.settings.max_tokens - sum(thread.tokens.num_sampled for thread in self.threads)
        if self.settings.max_turn_tokens:
            left = min(left, self.settings.max_turn_tokens)
        room = self.policy.context_tokens - len(tokens)
        return (room, StopReason.CONTEXT_FULL) if room < left else (left, StopReason.MAX_TOKENS)

    async def _generate(
        self, number: int, tokens: SegmentBuilder, budget: int, stop: tuple[str, ...]
    ) -> Generation:
        self.boundary = "policy"
        if self.newest != number:
            # An episode holds keys of one conversation: where sessions wait for rows of others, several would
            # wait for ever.
            await self.policy.release(self._session(self.newest))
            self.newest = number
        stop, stop_token_ids = (*self.renderer.stop, *stop), self.renderer.stop_token_ids
        return await self.policy.generate(
            tokens.token_ids,
            self.decoding.sampling(
                budget, self.dispatch.seed, self.replies, stop=stop, stop_token_ids=stop_token_ids
            ),
            session=self._session(number),
            start_version=self.dispatch.start_version,
        )

    def _session(self, number: int) -> str:
        return f"{self.dispatch.episode_id}/{number}" if number else self.dispatch.episode_id

    def segments(self) -> tuple[Segment, ...]:
        """One for each conversation; an empty one where there was none."""
        return tuple(thread.segment() for thread in self.threads) or (SegmentBuilder().build(),)

    def forget(self) -> None:
        """Drop all tokens."""
        for thread in self.threads:
            thread.tokens, thread.unread = SegmentBuilder(agent=thread.agent), False

    async def release(self) -> None:
        """Let the engine forget the sessions."""
        for number in range(max(1, len(self.threads))):
            await self.policy.release(self._session(number))


def _additions(messages: Sequence[Message]) -> Sequence[ToolResult] | str | None:
    """What follows a sampled message, as renderers take it; None where they cannot append it."""
    roles = [message["role"] for message in messages]
    if roles == ["user"] and isinstance(messages[0]["content"], str):
        return messages[0]["content"]
    if not roles or set(roles) != {"tool"}:
        return None
    return [
        ToolResult(call_id=m["tool_call_id"], name=m["name"], text=m["content"], ok=True, seconds=0.0)
        for m in messages
    ]


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
    return await EpisodeLoop(
        completer=TokenCompleter(policy, renderer, dispatch, settings, decoding),
        row=row,
        dispatch=dispatch,
        settings=settings,
        temperature=decoding.temperature,
    ).play(make_env)
