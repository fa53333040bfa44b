"""What every engine offers: tokens in, tokens out, with log-probabilities and versions.

The protocol knows nothing of messages, tools, environments or rewards: it is token ids in and
token ids out. Engines: `transformers` (embedded), `vllm` (servers), `scripted` (tests).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from agentrl.errors import ConfigError
from agentrl.weights.handle import WeightHandle


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """Which hidden states of a prompt are reported, as their mean over its last tokens."""

    tokens: int = 10
    """Of a shorter prompt, all."""
    layer: int = -1
    """Of the model's L + 1: 0 are the embeddings, -1 is what the output layer reads."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one message is sampled."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 means greedy; its log-probabilities are those of temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    stop: tuple[str, ...] = ()
    """Texts that end the message; the tokens that complete one are kept."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the message; the token is kept."""
    seed: int | None = None
    """Makes this message's random stream its own; None draws from the engine's."""
    top_logprobs: int = 0
    """k likeliest tokens of which the log-probabilities are reported too, at each place."""
    prompt_features: PromptFeatures | None = None
    """Hidden states of the prompt that are reported too."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0.0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, got {self.top_k}")


class FinishReason(StrEnum):
    """Why a message ended."""

    STOP = "stop"
    """A stop token or stop text was sampled."""
    LENGTH = "length"
    """`max_new_tokens` or the context ran out."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled message of N tokens."""

    token_ids: array[int]
    """[N]"""
    logprobs: array[float]
    """[N] nats, under the distribution actually sampled from (temperature and truncation applied)."""
    policy_versions: array[int]
    """[N] version that sampled each token; an update may land in the middle."""
    finish_reason: FinishReason
    top_ids: array[int] = field(default_factory=lambda: array("i"))
    """[N k] the likeliest tokens at each place, where `Sampling.top_logprobs` asks for them. The sampled
    token is among them only where it is one of the k."""
    top_logprobs: array[float] = field(default_factory=lambda: array("f"))
    """[N k] and their log-probabilities, under the same distribution, the largest of a place first."""
    prompt_features: array[float] = field(default_factory=lambda: array("f"))
    """[D] mean hidden state of the prompt's last tokens, where `Sampling.prompt_features` asks for it. It is
    made before anything is sampled."""


GIVES = ("gives_top_logprobs", "gives_prompt_features")
"""Attributes of a policy that say what it can report besides the sampled tokens."""


@runtime_checkable
class Policy(Protocol):
    """An engine that samples from one policy.

    An attribute `gives_top_logprobs = True` says that it heeds `Sampling.top_logprobs`, and
    `gives_prompt_features = True` that it heeds `Sampling.prompt_features`; a part that requires either is
    refused where there is none.

    A method `async play_episode(dispatch, environment, row)` says that it plays whole episodes itself, away
    from the run: a run that learns asks it for each episode (`dispatch` of it, the number of its environment
    among the run's, the row of data) and gets an `Episode`, failed or not. Single messages, as evaluations
    sample them, come from `generate` all the same.

    A method `on_error(handler)` says that it finds out by itself that it cannot go on: it gives the error to
    the handler, and the run ends with it at once, whatever it waits for.
    """

    @property
    def version(self) -> int:
        """Version that a token sampled now would get."""
        ...

    @property
    def context_tokens(self) -> int:
        """Longest sequence, prompt and message together."""
        ...

    async def start(self) -> None:
        """Become ready to generate.

        Raises:
            PolicyUnavailable: it did not within its limit.
        """
        ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str, start_version: int
    ) -> Generation:
        """Sample one message after `prompt_ids`.

        Calls of one `session` (an episode) extend each other's tokens, so an engine keeps the
        session's keys and values between them; `start_version` is the policy version at the
        session's dispatch, and salts shared caches. Cancelling the call aborts the request.

        Raises:
            ContextOverflow: the prompt leaves no room for a token.
            PolicyUnavailable: the engine died.
        """
        ...

    async def release(self, session: str) -> None:
        """Forget a session's keys and values. Unknown sessions are fine."""
        ...

    async def load(self, weights: WeightHandle) -> None:
        """Take new weights between two tokens; messages in flight go on.

        Raises:
            WeightSyncError: they could not be taken within the limit; the old version stays.
        """
        ...

    async def close(self) -> None:
        """Stop. Messages in flight fail with `PolicyUnavailable`."""
        ...

    def statistics(self) -> dict[str, float]:
        """Counters since the start: `sampled_tokens`, `prefilled_tokens`, `requests`, `running`, ..."""
        ...
