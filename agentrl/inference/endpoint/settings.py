"""Settings of an endpoint, and what it was used for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the endpoint is, and how much of it may be used."""

    url: str
    """Base URL, usually ending in `/v1`."""
    model: str
    key: str = field(default="", repr=False)
    """Empty takes the variable `key_variable`; local servers often need none."""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    """Requests in flight."""
    requests_per_minute: int = 0
    """0 means no limit."""
    tokens_per_minute: int = 0
    """Prompt and completion together; 0 means no limit."""
    budget_tokens: int = 0
    """Tokens of the whole evaluation; 0 means no limit."""
    budget_money: float = 0.0
    """In the currency of the prices; 0 means no limit."""
    price_prompt: float = 0.0
    """Per million prompt tokens."""
    price_completion: float = 0.0
    """Per million completion tokens."""
    timeout_s: float = 300.0
    """Longest wait for one answer."""
    attempts: int = 6
    """Tries of one request."""
    limit_name: str = "max_tokens"
    """Name of the limit on completion tokens; some endpoints want `max_completion_tokens`."""
    send_temperature: bool = True
    """Some models refuse a temperature and sample with their own."""
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further fields of every request, such as `reasoning_effort` or `chat_template_kwargs`."""
    seed: int = 0
    """Of the jitter between tries."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"an endpoint's URL begins with http:// or https://, got {self.url!r}")
        if not self.model:
            raise ConfigError("an endpoint needs the name of a model")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s must be above 0, got {self.timeout_s:g}")
        if self.budget_money > 0 and self.price_prompt <= 0 and self.price_completion <= 0:
            raise ConfigError("a budget in money needs the prices of a million tokens")


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
