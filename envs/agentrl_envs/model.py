"""What an environment has of the model that plays its episode: messages in, the next message out.

The rollout gives one to every instance. Knows nothing of tokens, engines or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import EnvError
from .messages import Message, ToolCall, ToolResult, ToolSpec

__all__ = ["Access", "Model", "ModelFailure", "Spoken"]


class ModelFailure(EnvError):
    """The model behind an episode broke while the environment asked it; the episode fails for that reason."""


class Spoken(Protocol):
    """One message of the model."""

    @property
    def text(self) -> str:
        """All that it said."""
        ...

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What it calls, in order."""
        ...

    @property
    def message(self) -> Message:
        """The same as it goes back into a conversation."""
        ...

    @property
    def cut(self) -> Any:
        """The limit of the episode that ended it in mid-sentence, or left no room for it; None: none did."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """How a program reaches the model of one episode over HTTP."""

    url: str
    """Root of the server; OpenAI clients take `url + "/v1"` as their base URL."""
    key: str
    """API key of this episode alone; it ends with the episode."""
    reward_key: str
    """Key for `POST /v1/agentrl/reward`: for whoever grades, never for the agent's process."""
    calls: GatewayCalls


class GatewayCalls(Protocol):
    """What the gateway tells of one episode while its program runs."""

    async def ended(self) -> None:
        """Wait until the episode cannot go on: a limit is reached, or the model broke."""
        ...

    @property
    def limit(self) -> Any:
        """The limit that ended the conversation; None while there is room."""
        ...

    async def reward(self) -> Any:
        """Wait for the reward that is handed in with the reward key."""
        ...


class Model(Protocol):
    """Speaks in one episode."""

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, agent: str = "agent"
    ) -> Spoken:
        """The next message. Where a limit leaves no room, an empty one with `cut` set.

        Raises:
            ModelFailure: the engine or the endpoint broke.
        """
        ...

    def size(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[int, int]:
        """Tokens that `messages` take and that the context holds; (0, 0) where nobody knows."""
        ...

    def acted(self, spoken: Spoken, results: Sequence[ToolResult]) -> list[Message]:
        """Record the results of a message's calls; as messages, cut to what a model is shown."""
        ...

    def count(self, name: str, by: int = 1) -> None:
        """Count something of the episode, for its metrics."""
        ...

    def serve(self) -> AbstractAsyncContextManager[Access]:
        """Let programs reach this model over HTTP while the context is open."""
        ...

    async def partner(self, messages: Sequence[Message]) -> str:
        """The next message of another model, at the endpoint `rollout.partner_url`; it is not trained.

        Raises:
            ModelFailure: there is none, or it does not answer.
        """
        ...
