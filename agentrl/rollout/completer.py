"""Completes conversations: what the loop of an episode asks of whoever speaks, an engine or an endpoint.

A completer is given a whole conversation and says its next message. It is made for one episode and keeps what
belongs to it: tokens, limits, the random stream. Environments, tools and rewards are the loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from agentrl.config import registry
from agentrl.config.settings import Settings
from agentrl.episode import Boundary, Segment, StopReason
from agentrl.inference.policy import PromptFeatures, Sampling
from agentrl_envs import Message, ToolCall, ToolSpec


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
    top_logprobs: int = 0
    """Likeliest tokens that are kept of each place, for losses that require them."""
    prompt_features: PromptFeatures | None = None
    """Hidden states that are kept of an episode's first prompt, for estimators that require them."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """How a run samples the episodes that it learns from, with what its parts require."""
        features = registry.prompt_features(settings.estimator.kind, settings.estimator.own)
        return cls(
            settings.rollout.temperature,
            top_logprobs=registry.behaviour_top_k(settings.loss.kind, settings.loss.own),
            prompt_features=None if features is None else PromptFeatures(**features),
        )

    def sampling(
        self,
        budget: int,
        seed: int | None,
        turn: int,
        *,
        stop: tuple[str, ...] = (),
        stop_token_ids: tuple[int, ...] = (),
    ) -> Sampling:
        """How one message of at most `budget` tokens is sampled, with a random stream of its own.

        Hidden states are asked for with the first alone: later prompts follow from what was sampled.
        """
        return Sampling(
            max_new_tokens=budget,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            top_logprobs=self.top_logprobs,
            prompt_features=None if turn else self.prompt_features,
            stop=stop,
            stop_token_ids=stop_token_ids,
            seed=None if seed is None else (seed * 1_000_003 + turn) % 2**62,
        )


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """What one message differs in from the others of its episode."""

    agent: str = "agent"
    """Who speaks: conversations of different agents never share a segment."""
    stop: tuple[str, ...] = ()
    """Texts that end the message, beside those of the format."""
    max_tokens: int = 0
    """Its tokens at most; 0 leaves that to the episode's limits."""


PLAIN = MessageOptions()


@dataclass(frozen=True, slots=True)
class Reply:
    """The next message of a conversation."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    message: Message
    """The same as it goes back into the conversation."""
    cut: StopReason | None = None
    """The limit that ended it in mid-sentence."""
    segment: int = 0
    span: tuple[int, int] = (0, 0)
    """Its tokens [start, end) in the segment; empty where there are no tokens."""
    extends: bool = False
    """Whether it goes on from tokens of an earlier message; else it is the first of its segment."""
    ended: bool = True
    """Whether the model ended it; else it ran into a limit, its own or the episode's."""
    turn: int = -1
    """Its place among the turns of the episode, which the loop gives it."""


class Exhausted(Exception):
    """A limit leaves no room for another message.

    Args:
        reason: the limit.
    """

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Completer(Protocol):
    """Speaks in one episode."""

    speaker: ClassVar[str]
    """Who that is, in errors."""
    fatal: ClassVar[tuple[type[Exception], ...]]
    """Errors after which no episode can go on."""
    boundary: Boundary
    """Which part is at work: the one that broke if something breaks in `complete`."""

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: MessageOptions = PLAIN
    ) -> Reply:
        """The next message after `messages`.

        Raises:
            Exhausted: there is no room for one.
        """
        ...

    def size(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, int]:
        """Tokens that `messages` take, and how many the context holds; (0, 0) where nobody knows."""
        ...

    def discard(self, reply: Reply) -> None:
        """A message was never read by whoever asked for it: it is not learned from."""
        ...

    def segments(self) -> tuple[Segment, ...]:
        """The tokens of the episode; at least one segment."""
        ...

    def forget(self) -> None:
        """Drop all tokens: they are not what they should be."""
        ...

    async def release(self) -> None:
        """Let go of what is kept elsewhere for this episode."""
        ...
