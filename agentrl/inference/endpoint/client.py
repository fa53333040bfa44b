"""Any OpenAI-compatible endpoint as a model that answers messages, for evaluation.

Messages in, one reply out: text, native tool calls, token usage. Limits of requests and tokens per
minute, `Retry-After`, a budget in tokens and money, and typed errors live here. It knows nothing of
environments, rewards or episodes (`agentrl.rollout.endpoint_completer` does), and endpoints are never
trained: they give no token ids.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.config.ranges import check_ranges
from agentrl.errors import ConfigError
from agentrl.inference.endpoint.errors import (
    BadAnswer,
    BudgetExceeded,
    EndpointError,
    EndpointRefused,
    EndpointUnavailable,
    NoRoom,
    RequestRefused,
    error_of,
    refused,
)
from agentrl.inference.endpoint.rates import TokenRate
from agentrl.inference.endpoint.replies import read_answer
from agentrl.inference.endpoint.settings import EndpointSettings, Usage
from agentrl.inference.policy import Sampling
from agentrl_envs import Message, ToolCall, ToolSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_WAIT_S = 60.0
_WAITERS = 4
"""Tasks that poll the throttler at once; the others wait at a semaphore, which costs nothing."""
_NARROWINGS = 8
"""Times one request is asked again with a shorter answer. Once or twice does where the refusal has numbers;
where it says "at least", each time halves the room."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One message of the model."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    finish_reason: str
    """`stop`, `length`, `tool_calls`, or what else the endpoint said."""
    message: Message
    """The message as it goes back into the conversation."""
    reasoning: str = ""
    """Thinking that came apart from the text."""
    refusal: str = ""
    """Why it is no answer (a content filter); empty where it is one."""


class EndpointPolicy:
    """Asks one endpoint. Made for many concurrent episodes.

    Args:
        settings: where, and how much.
        key: empty takes the one of the variable that the settings name.
        concurrency: requests in flight.
        seed: of the jitter between tries.
        spent: what an earlier, interrupted evaluation used of the same budget.
        period_s: length of the "minute" of the rate limits (tests shorten it).

    Raises:
        ConfigError: the settings cannot work.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        key: str = "",
        concurrency: int = 16,
        seed: int = 0,
        spent: Usage | None = None,
        period_s: float = 60.0,
    ) -> None:
        check_ranges(settings, "endpoint")
        if not settings.url or not settings.model:
            raise ConfigError("an endpoint needs a URL and the name of a model")
        self.settings, self._key = settings, key
        self.usage = spent or Usage()
        self._reservations: set[_Reservation] = set()
        self._conversations = 0
        self._end: EndpointError | None = None
        self._settled = asyncio.Event()
        self._random = random.Random(seed)
        self._slots = asyncio.Semaphore(concurrency)
        self._waiters = asyncio.Semaphore(_WAITERS)
        self._period_s = period_s
        self._throttler: Any = None
        self._tokens = TokenRate(settings.tokens_per_minute, period_s) if settings.tokens_per_minute else None
        self._not_before = 0.0
        self._longest_answer = sys.maxsize
        self._listed = ""
        self._client: AsyncOpenAI | None = None

    def _open(self) -> AsyncOpenAI:
        if self._client is None:
            from openai import AsyncOpenAI

            settings = self.settings
            key = self._key or os.environ.get(settings.key_variable, "") or "none"
            # Retries are ours alone: two layers of them multiply.
            self._client = AsyncOpenAI(
                base_url=settings.url, api_key=key, max_retries=0, timeout=settings.timeout_s
            )
        return self._client

    async def start(self) -> None:
        """Check that the endpoint answers and knows the key.

        A model that it does not list is only told: aliases, deployments and routers are not always listed.

        Raises:
            EndpointRefused: it does not know the key.
            EndpointUnavailable: nobody answers.
        """
        import openai

        try:
            models = await self._open().models.list()
        except openai.AuthenticationError as error:
            raise refused(error, self.settings) from error
        except openai.APIStatusError:
            return  # some endpoints have no list of models, or none for this key
        except openai.OpenAIError as error:
            raise EndpointUnavailable(f"nobody answers at {self.settings.url}: {error}") from error
        names = [model.id for model in models.data]
        if names and not {self.settings.model, f"models/{self.settings.model}"} & set(names):
            self._listed = ", ".join(names[:10])
            logger.warning(
                "%s does not list %r; it lists %s", self.settings.url, self.settings.model, self._listed
            )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def hold(self, conversation: Callable[[], Awaitable[T]]) -> T:
        """Hold one conversation of many.

        What ends one for good ends all, but those in flight go on to their end first, since their answers
        are paid for, and no other begins.

        Raises:
            BudgetExceeded, EndpointRefused: nothing is in flight any more.
        """
        if self._end is None:
            self._conversations += 1
            try:
                return await conversation()
            except (BudgetExceeded, EndpointRefused) as error:
                self._end = self._end or error
            finally:
                self._conversations -= 1
                self._settle()
        while self._conversations:
            await self._settled.wait()
        raise self._end

    def _settle(self) -> None:
        """Wake all who wait for something in flight to end."""
        self._settled.set()
        self._settled = asyncio.Event()

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling
    ) -> ChatReply:
        """One message of the model after `messages`.

        Raises:
            BudgetExceeded: it might cost more than is left.
            NoRoom: the conversation fills the context.
            RequestRefused: a content filter stopped the answer, or the endpoint declined to give one.
            EndpointError: see its subclasses.
        """
        request = self._request(messages, tools, sampling)
        estimate = _estimate(messages, tools) + request[self.settings.limit_name]
        async with self._slots, _Reservation(self, estimate):
            return await self._fit(request, estimate)

    def _request(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.settings.model,
            "messages": list(messages),
            self.settings.limit_name: min(sampling.max_new_tokens, self._longest_answer),
        }
        if self.settings.send_temperature:
            request["temperature"] = sampling.temperature
        if sampling.top_p < 1.0:
            request["top_p"] = sampling.top_p
        extra = ({"top_k": sampling.top_k} if sampling.top_k else {}) | dict(self.settings.body)
        if extra:
            request["extra_body"] = extra
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            request["seed"] = sampling.seed % 2**31
        if tools:
            request["tools"] = [tool.as_openai() for tool in tools]
        return request

    async def _fit(self, request: dict[str, Any], estimate: int) -> ChatReply:
        """Ask, and again with the room that is left where the answer asked for does not fit."""
        name = self.settings.limit_name
        for _ in range(_NARROWINGS):
            try:
                return await self._try_all(request, estimate)
            except NoRoom as error:
                if not 1 <= error.room < request[name]:
                    raise
                if not error.prompt_tokens:  # so it holds for every prompt
                    self._longest_answer = min(self._longest_answer, error.room)
                request = {**request, name: error.room}
        return await self._try_all(request, estimate)

    async def _try_all(self, request: dict[str, Any], estimate: int) -> ChatReply:
        last: Exception | None = None
        for attempt in range(self.settings.attempts):
            try:
                reply = await self._attempt(request, estimate)
            except (EndpointUnavailable, BadAnswer) as error:
                last = error
                await self._back_off(attempt, getattr(error, "retry_after_s", None))
                continue
            self.usage += reply.usage
            if reply.refusal:
                raise RequestRefused(f"{self.settings.url} gives no answer: {reply.refusal}")
            return reply
        assert last is not None
        raise type(last)(f"{last} (the last of {self.settings.attempts} attempts)") from last

    async def _attempt(self, request: dict[str, Any], estimate: int) -> ChatReply:
        """One attempt, within the limits of rate; one that fails counts no tokens."""
        if self._tokens is None:
            await self._admit()
            return await self._ask(request)
        entry, used = await self._tokens.reserve(estimate), 0
        try:
            await self._admit()
            reply = await self._ask(request)
            used = reply.usage.tokens
            return reply
        finally:
            self._tokens.correct(entry, used)

    async def _admit(self) -> None:
        """Wait for the requests per minute, and for the moment an earlier answer asked us to wait for."""
        if self.settings.requests_per_minute:
            if self._throttler is None:
                from asyncio_throttle.throttler import Throttler

                self._throttler = Throttler(self.settings.requests_per_minute, period=self._period_s)
            async with self._waiters, self._throttler:
                pass
        while (wait := self._not_before - time.monotonic()) > 0:  # noqa: ASYNC110 (it may move)
            await asyncio.sleep(wait)

    async def _back_off(self, attempt: int, retry_after_s: float | None) -> None:
        if retry_after_s is not None:
            # The endpoint told one of us; it means all of us.
            self._not_before = max(self._not_before, time.monotonic() + min(retry_after_s, 10 * _MAX_WAIT_S))
            return
        if attempt + 1 < self.settings.attempts:
            scale = self._period_s / 60.0
            await asyncio.sleep(scale * min(_MAX_WAIT_S, 2.0**attempt) * (0.5 + self._random.random()))

    async def _ask(self, request: dict[str, Any]) -> ChatReply:
        """One attempt; every error of the client becomes one of ours."""
        import openai

        settings = self.settings
        try:
            # The client's own limit counts silence between bytes; this one counts the whole answer.
            async with asyncio.timeout(settings.timeout_s):
                answer = await self._open().chat.completions.with_raw_response.create(**request)
        except openai.APIStatusError as error:
            raise error_of(error, self.settings, request[settings.limit_name], self._listed) from error
        except (openai.APITimeoutError, TimeoutError) as error:
            raise EndpointUnavailable(
                f"{settings.url} said nothing for {settings.timeout_s:g} s (timeout_s)"
            ) from error
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise EndpointUnavailable(f"the connection to {settings.url} broke: {reason!r}") from error
        except openai.OpenAIError as error:
            raise BadAnswer(f"{settings.url} gave an answer that cannot be read: {error}") from error
        return self._reply(answer.http_response.text)

    def _reply(self, body: str) -> ChatReply:
        answer = read_answer(body, self.settings.url)
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        return ChatReply(
            answer.text,
            answer.tool_calls,
            Usage(prompt, completion, self._price(prompt, completion), 1),
            answer.finish_reason,
            answer.message,
            answer.reasoning,
            answer.refusal,
        )

    def _price(self, prompt: int, completion: int) -> float:
        return (prompt * self.settings.price_prompt + completion * self.settings.price_completion) / 1e6


class _Reservation:
    """Holds a request's share of the budget while it is in flight: many together must not overspend it."""

    def __init__(self, policy: EndpointPolicy, tokens: int) -> None:
        self._policy, self.tokens = policy, tokens
        highest = max(policy.settings.price_prompt, policy.settings.price_completion)
        self.money = tokens * highest / 1e6

    async def __aenter__(self) -> None:
        while not self._fits():
            await self._policy._settled.wait()
        self._policy._reservations.add(self)

    async def __aexit__(self, *_: object) -> None:
        self._policy._reservations.discard(self)
        self._policy._settle()

    def _fits(self) -> bool:
        """Whether it fits beside what is in flight, most of which will cost less than it reserves.

        Raises:
            BudgetExceeded: it would not fit alone.
        """
        policy, settings = self._policy, self._policy.settings
        held = policy._reservations
        tokens, money = policy.usage.tokens + self.tokens, policy.usage.money + self.money
        if settings.budget_tokens and tokens > settings.budget_tokens:
            raise BudgetExceeded(
                f"the next answer could bring {policy.usage.tokens} tokens to {tokens}, "
                f"over the budget of {settings.budget_tokens}"
            )
        if settings.budget_money and money > settings.budget_money:
            raise BudgetExceeded(
                f"the next answer could bring {policy.usage.money:.4f} to {money:.4f}, "
                f"over the budget of {settings.budget_money:g}"
            )
        tokens += sum(other.tokens for other in held)
        money += sum(other.money for other in held)
        return (not settings.budget_tokens or tokens <= settings.budget_tokens) and (
            not settings.budget_money or money <= settings.budget_money
        )


def _estimate(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
    """Prompt tokens, roughly (3 bytes each): for reservations; what counts is the endpoint's own usage."""
    text = json.dumps(list(messages)) + json.dumps([tool.as_openai() for tool in tools])
    return len(text.encode()) // 3 + 1
