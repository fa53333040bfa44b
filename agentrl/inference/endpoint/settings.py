"""Settings of an endpoint, and what it was used for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl.config.ranges import Amount, Count, Number, Seconds
from agentrl.config.settings import Rules


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """A model of an OpenAI-compatible endpoint."""

    url: str = ""
    """Base URL, usually ending in `/v1`; empty is none."""
    model: str = ""
    """Name of the model there; `[endpoint]` takes `model.path` where it is empty."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; local servers often need none."""


@dataclass(frozen=True, slots=True)
class EndpointSettings(EndpointAddress):
    """`[endpoint]`: an OpenAI-compatible endpoint, and how much of it may be used."""

    tool_format: Literal["native", "code"] = "native"
    """Tools are called natively, or in code blocks."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit on an answer; reasoning models want `max_completion_tokens`."""
    send_temperature: bool = True
    """Some models refuse a temperature and sample with their own."""
    body: dict[str, object] = field(default_factory=dict)
    """Further fields of every request, such as `reasoning_effort` or `chat_template_kwargs`."""
    timeout_s: Seconds = 300.0
    """Longest wait for one answer."""
    attempts: Count = 6
    """Tries of one request."""
    requests_per_minute: Number = 0
    """0 means no limit."""
    tokens_per_minute: Number = 0
    """Prompt and completion together; 0 means no limit."""
    budget_tokens: Number = 0
    """Tokens of the whole evaluation; 0 means no limit."""
    budget_money: Amount = 0.0
    """In the currency of the prices; 0 means no limit."""
    price_prompt: Amount = 0.0
    """Of a million prompt tokens."""
    price_completion: Amount = 0.0
    """Of a million completion tokens."""

    def rules(self) -> Rules:
        """What is wrong with them together."""
        if self.url and not self.url.startswith(("http://", "https://")):
            yield ("url",), f"an endpoint's URL begins with http:// or https://, got {self.url!r}"
        if self.budget_money > 0 and self.price_prompt <= 0 and self.price_completion <= 0:
            text = "a budget in money needs the prices of a million tokens"
            yield ("budget_money", "price_prompt"), text

    def identity(self) -> dict[str, Any]:
        """What its answers depend on; settings at their defaults are left out."""
        unusual: dict[str, Any] = {}
        if self.limit_name != "max_tokens":
            unusual["limit_name"] = self.limit_name
        if not self.send_temperature:
            unusual["temperature"] = "not sent"
        if self.body:
            unusual["body"] = dict(self.body)
        # Where it stands is told beside, not here: a server that comes back at another port is the same one.
        return {"kind": "endpoint", "model": self.model, "tool_format": self.tool_format} | unusual


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or many requests."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    requests: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.money + other.money,
            self.requests + other.requests,
        )
