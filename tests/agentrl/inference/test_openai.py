"""Endpoints: faults, rate limits, budgets and tool calls, against a real server that misbehaves."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentrl.errors import ConfigError, ContextOverflow
from agentrl.inference.endpoint.client import EndpointPolicy
from agentrl.inference.endpoint.errors import (
    BadAnswer,
    BudgetExceeded,
    EndpointRefused,
    EndpointUnavailable,
    RequestRefused,
    retry_after_s,
)
from agentrl.inference.endpoint.rates import TokenRate
from agentrl.inference.endpoint.settings import EndpointSettings, Usage
from agentrl.inference.policy import Sampling
from agentrl_envs import ToolSpec
from tests.agentrl.inference.faulty_endpoint import (
    FaultyEndpoint,
    body,
    call,
    completion,
    drip,
    half,
    serving,
    silence,
    status,
)

HELLO = [{"role": "user", "content": "hello"}]
SAMPLING = Sampling(max_new_tokens=20)
PYTHON = ToolSpec(
    "python", "Run Python.", {"type": "object", "properties": {"code": {"type": "string"}}}, False, 10.0
)


@asynccontextmanager
async def policy_for(endpoint: FaultyEndpoint, **settings: Any) -> AsyncIterator[EndpointPolicy]:
    spent = settings.pop("spent", None)
    # A "minute" of 30 ms, so that backing off costs nothing here.
    period_s = settings.pop("period_s", 0.03)
    settings = {"model": "m", "attempts": 3, "timeout_s": 5.0, **settings}
    more = {"concurrency": settings.pop("concurrency")} if "concurrency" in settings else {}
    policy = EndpointPolicy(
        EndpointSettings(url=endpoint.url, **settings), spent=spent, period_s=period_s, **more
    )
    try:
        yield policy
    finally:
        await policy.close()


async def until_asked(endpoint: FaultyEndpoint) -> None:
    while not endpoint.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_a_reply_has_text_usage_and_price():
    async with (
        serving(completion("4", prompt_tokens=100, completion_tokens=50)) as endpoint,
        policy_for(endpoint, price_prompt=2.0, price_completion=10.0) as policy,
    ):
        reply = await policy.chat(HELLO, [], Sampling(max_new_tokens=7, temperature=0.3, top_k=4, seed=5))
    assert (reply.text, reply.finish_reason, reply.tool_calls) == ("4", "stop", ())
    # 100 * 2 / 1e6 + 50 * 10 / 1e6
    assert reply.usage == Usage(100, 50, pytest.approx(0.0007), 1)
    sent = endpoint.requests[0]
    assert (sent["max_tokens"], sent["temperature"], sent["top_k"], sent["seed"]) == (7, 0.3, 4, 5)
    assert "tools" not in sent


@pytest.mark.parametrize(
    "fault",
    [status(429), status(500), status(503), half(), body("<html>sorry</html>"), body("{}"), body("[]")],
    ids=["429", "500", "503", "half", "html", "empty", "list"],
)
async def test_a_fault_that_passes_is_survived(fault: Any):
    async with serving(fault, completion("fine")) as endpoint, policy_for(endpoint) as policy:
        reply = await policy.chat(HELLO, [], SAMPLING)
    assert reply.text == "fine"
    assert len(endpoint.requests) == 2
    # Only what was answered is paid for: counting failed tries too would give requests == 2.
    assert policy.usage == Usage(10, 5, 0.0, 1)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (status(429), EndpointUnavailable, "429"),
        (status(500), EndpointUnavailable, "500"),
        (half(), EndpointUnavailable, "connection"),
        (body("<html>sorry</html>", "text/html"), BadAnswer, "no chat completion"),
        (body('{"choices": []}'), BadAnswer, "no chat completion"),
        (body("{not json"), BadAnswer, "no"),
    ],
    ids=["429", "500", "half", "html", "no choices", "garbage"],
)
async def test_a_fault_that_stays_becomes_a_typed_error(fault: Any, error: type[Exception], words: str):
    async with serving(fault) as endpoint, policy_for(endpoint) as policy:
        with pytest.raises(error, match=words):
            await policy.chat(HELLO, [], SAMPLING)
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("fault", [silence(), drip()], ids=["silence", "a byte now and then"])
async def test_an_endpoint_that_never_finishes_is_given_up(fault: Any):
    async with serving(fault) as endpoint, policy_for(endpoint, attempts=2, timeout_s=0.5) as policy:
        with pytest.raises(EndpointUnavailable, match=r"0\.5 s"):
            await policy.chat(HELLO, [], SAMPLING)
    assert len(endpoint.requests) == 2


async def test_nobody_listens():
    async with serving(completion()) as endpoint:
        pass
    async with policy_for(endpoint, attempts=2) as policy:
        with pytest.raises(EndpointUnavailable, match="connection"):
            await policy.chat(HELLO, [], SAMPLING)
        with pytest.raises(EndpointUnavailable, match="nobody answers"):
            await policy.start()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(401), "OPENAI_API_KEY"),
        (status(404), "model's name 'm'"),
        (status(402), "402"),
        (status(400, error={"message": "Unsupported value", "code": "unsupported_value"}), "Unsupported"),
        (status(400, error={"message": "must be positive", "param": "top_p"}), "must be positive"),
        (status(429, error={"message": "pay", "code": "insufficient_quota"}), "pay"),
    ],
    ids=["key", "model", "balance", "value", "parameter", "quota"],
)
async def test_what_will_not_change_is_not_tried_again(fault: Any, words: str):
    async with serving(fault) as endpoint, policy_for(endpoint) as policy:
        with pytest.raises(EndpointRefused, match=words):
            await policy.chat(HELLO, [], SAMPLING)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        status(
            400, error={"message": "The response was filtered", "code": "content_filter", "param": "prompt"}
        ),
        status(400, error={"message": "Invalid prompt: it violates the policy", "code": "invalid_prompt"}),
        status(403, error={"message": "Your input was flagged"}),
        status(400),
    ],
    ids=["content filter", "invalid prompt", "moderation", "no reason"],
)
async def test_a_conversation_that_is_refused_is_not_the_end_of_all(fault: Any):
    async with serving(fault, completion("fine")) as endpoint, policy_for(endpoint) as policy:
        with pytest.raises(RequestRefused):
            await policy.chat(HELLO, [], SAMPLING)
        assert (await policy.chat(HELLO, [], SAMPLING)).text == "fine"


MAXIMUM = "This model's maximum context length is 8192 tokens"
# Refusals of 4096 new tokens in the words of many endpoints, and what is left.
TOO_LONG = [
    (f"{MAXIMUM}. However, you requested 9096 tokens (5000 in the messages, 4096 in the completion).", 3192),
    (
        f"{MAXIMUM}. However, you requested 4096 output tokens and your prompt contains 5000 input tokens",
        3192,
    ),
    (
        f"'max_tokens' is too large: 4096. {MAXIMUM} and your request has 5000 input tokens (4096 > ...).",
        3192,
    ),
    ("context length of 8192 tokens. You requested a total of 9096 tokens: 5000 tokens from the input", 3192),
    ("input length and `max_tokens` exceed context limit: 5000 + 4096 > 8192, decrease input length", 3192),
    ("`inputs` tokens + `max_new_tokens` must be <= 8192. Given: 5000 `inputs` tokens and 4096 ...", 3192),
    ("max_tokens=4096 cannot be greater than max_model_len=2048. Please request fewer output tokens.", 2048),
    ("max_tokens is too large: 4096. This model supports at most 2048 completion tokens.", 2048),
    ("max_tokens: 4096 > 2048, which is the maximum allowed number of output tokens for the model", 2048),
    ("Invalid max_tokens value, the valid range of max_tokens is [1, 2048]", 2048),
    ("`max_tokens` must be less than or equal to `2048`, the maximum value for `max_tokens`", 2048),
    # Nobody counted this prompt to its end: half of the room.
    (
        f"{MAXIMUM}. However, you requested 4096 output tokens and your prompt contains at least 4097 input",
        2047,
    ),
]


@pytest.mark.parametrize(("text", "room"), TOO_LONG)
async def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_room_that_is_left(
    text: str, room: int
):
    fault = status(400, error={"message": text, "type": "BadRequestError", "code": 400})
    async with serving(fault, completion("fine")) as endpoint, policy_for(endpoint) as policy:
        reply = await policy.chat(HELLO, [], Sampling(max_new_tokens=4096))
    assert reply.text == "fine"
    assert [sent["max_tokens"] for sent in endpoint.requests] == [4096, room]


async def test_a_longest_answer_is_learned_once():
    fault = status(400, error={"message": "max_tokens=4096 cannot be greater than max_model_len=2048."})
    async with serving(fault, completion()) as endpoint, policy_for(endpoint) as policy:
        await policy.chat(HELLO, [], Sampling(max_new_tokens=4096))
        await policy.chat(HELLO, [], Sampling(max_new_tokens=4096))
        await policy.chat(HELLO, [], Sampling(max_new_tokens=100))
    assert [sent["max_tokens"] for sent in endpoint.requests] == [4096, 2048, 2048, 100]


@pytest.mark.parametrize(
    ("text", "prompt", "context"),
    [
        (f"{MAXIMUM}. However, your messages resulted in 9000 tokens.", 9000, 8192),
        (f"{MAXIMUM}. However, your prompt contains at least 8193 input tokens, which exceeds", 8193, 8192),
        ("The decoder prompt (length 9000) is longer than the maximum model length of 8192.", 9000, 8192),
        ("Input length (9000) exceeds model's maximum context length (8192).", 9000, 8192),
        ("You passed 9000 input tokens and the model's context length is only 8192 tokens", 9000, 8192),
        ("The input token count (9000) exceeds the maximum number of tokens allowed (8192).", 9000, 8192),
        ("prompt is too long: 9000 tokens > 8192 maximum", 9000, 8192),
        ("request (9000 tokens) exceeds the available context size (8192 tokens)", 9000, 8192),
        ("This model's maximum prompt length is 8192 but the request contains 9000 tokens.", 9000, 8192),
        ("Your input exceeds the context window of this model.", 0, 0),
    ],
)
async def test_a_conversation_that_is_too_long(text: str, prompt: int, context: int):
    async with (
        serving(status(400, error={"message": text})) as endpoint,
        policy_for(endpoint) as policy,
    ):
        with pytest.raises(ContextOverflow) as caught:
            await policy.chat(HELLO, [], SAMPLING)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (prompt, context)
    assert text in str(caught.value)
    assert len(endpoint.requests) == 1


async def test_retry_after_holds_everybody_back():
    async with (
        serving(status(429, {"retry-after-ms": "120"}), completion()) as endpoint,
        policy_for(endpoint) as policy,
    ):
        first = asyncio.create_task(policy.chat(HELLO, [], SAMPLING))
        await until_asked(endpoint)
        await asyncio.sleep(0.03)
        await asyncio.gather(first, policy.chat(HELLO, [], SAMPLING))
    assert len(endpoint.requests) == 3
    # The second request, of another caller, came after the time the first one was told.
    assert min(endpoint.times[1:]) - endpoint.times[0] >= 0.115


def test_retry_after_in_all_its_forms():
    assert retry_after_s({"retry-after": "2"}) == 2.0
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < (retry_after_s({"retry-after": date}) or 0) <= 60
    assert retry_after_s({"retry-after": "Fri, 01 Jan 1999 00:00:00 GMT"}) == 0.0
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None


async def test_requests_per_minute():
    async with (
        serving(completion()) as endpoint,
        policy_for(endpoint, requests_per_minute=4, period_s=0.3) as policy,
    ):
        started = time.monotonic()
        await asyncio.gather(*(policy.chat(HELLO, [], SAMPLING) for _ in range(12)))
    # A request may arrive late but never early: the fifth not before one period, the ninth not before two. Without
    # the throttler all twelve are there at once.
    for number, arrived in enumerate(sorted(endpoint.times)):
        assert arrived - started >= 0.9 * 0.3 * (number // 4)
    assert len(endpoint.times) == 12


async def test_tokens_per_minute():
    rate = TokenRate(100, period_s=0.2)
    started = time.monotonic()
    first = await rate.reserve(60)
    rate.correct(first, 90)
    await rate.reserve(20)  # 90 + 20 > 100: waits for the first one to leave the window
    assert time.monotonic() - started >= 0.19
    # Larger than the limit: an empty window is all it can wait for.
    await rate.reserve(500)
    assert time.monotonic() - started >= 0.38


async def test_a_correction_lets_the_next_request_go():
    rate = TokenRate(60_000, period_s=600)
    first = await rate.reserve(33_000)
    second = asyncio.create_task(rate.reserve(33_000))
    await asyncio.sleep(0.01)
    assert not second.done()
    rate.correct(first, 500)
    await asyncio.wait_for(second, 5)


async def test_a_failed_attempt_uses_no_tokens():
    fault = status(503, {"retry-after-ms": "1"})
    async with (
        serving(fault, fault, completion()) as endpoint,
        policy_for(endpoint, tokens_per_minute=100, period_s=600) as policy,
        asyncio.timeout(10),
    ):
        await policy.chat(HELLO, [], Sampling(max_new_tokens=80))
    assert len(endpoint.requests) == 3


async def test_concurrency_is_bounded():
    running, most = 0, 0

    async def slow(request: Any, sent: dict[str, Any]) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return await completion()(request, sent)

    async with serving(slow) as endpoint, policy_for(endpoint, concurrency=3) as policy:
        await asyncio.gather(*(policy.chat(HELLO, [], SAMPLING) for _ in range(12)))
    assert most == 3


async def test_a_budget_in_tokens_is_never_overspent():
    step = completion(prompt_tokens=20, completion_tokens=20)
    async with serving(step) as endpoint, policy_for(endpoint, budget_tokens=200) as policy:
        # Each may use up to 20 new tokens and some 25 of prompt: not counting those in flight would let
        # all ten pass, for 400 tokens.
        results = await asyncio.gather(
            *(policy.chat(HELLO, [], SAMPLING) for _ in range(10)), return_exceptions=True
        )
    refused = [result for result in results if isinstance(result, BudgetExceeded)]
    assert policy.usage.tokens <= 200
    assert 0 < len(refused) < 10
    assert policy.usage.requests == 10 - len(refused)


@pytest.mark.parametrize(
    "budget",
    [{"budget_tokens": 1000}, {"budget_money": 0.01, "price_prompt": 10.0, "price_completion": 10.0}],
    ids=["tokens", "money"],
)
async def test_reservations_wait_for_each_other_and_not_for_the_end(budget: dict[str, Any]):
    # Ten times 15 tokens are far below 1000; ten times the 400 that each may use are far above.
    async with serving(completion()) as endpoint, policy_for(endpoint, **budget) as policy:
        await asyncio.gather(*(policy.chat(HELLO, [], Sampling(max_new_tokens=400)) for _ in range(10)))
    assert policy.usage.tokens == 150


async def test_a_budget_in_money_goes_on_after_an_interruption():
    spent = Usage(1000, 1000, money=0.9999, requests=2)
    async with (
        serving(completion()) as endpoint,
        policy_for(
            endpoint, budget_money=1.0, price_prompt=10.0, price_completion=10.0, spent=spent
        ) as policy,
    ):
        with pytest.raises(BudgetExceeded, match=r"0\.9999"):
            await policy.chat(HELLO, [], SAMPLING)
    assert endpoint.requests == []


async def test_native_tool_calls():
    written = ['{"code": "1+1"}', '{"code": ', "[1]"]
    calls = [call("python", text, name) for text, name in zip(written, "abc", strict=True)]
    async with (
        serving(completion(None, finish_reason="tool_calls", tool_calls=calls)) as endpoint,
        policy_for(endpoint) as policy,
    ):
        reply = await policy.chat(HELLO, [PYTHON], SAMPLING)
    good, cut, wrong = reply.tool_calls
    assert (good.id, good.name, good.arguments, good.error) == ("a", "python", {"code": "1+1"}, None)
    assert cut.arguments is None
    assert "no JSON" in (cut.error or "")
    assert "object" in (wrong.error or "")
    assert reply.text == ""
    # What goes back into the conversation is what the model wrote, letter for letter.
    assert [item["function"]["arguments"] for item in reply.message["tool_calls"]] == written
    assert endpoint.requests[0]["tools"][0]["function"]["name"] == "python"


@pytest.mark.parametrize("models", [("m",), ("models/m", "models/n"), ()])
async def test_start_accepts_a_listed_model(models: tuple[str, ...], caplog: pytest.LogCaptureFixture):
    async with serving(completion(), models=models) as endpoint, policy_for(endpoint) as policy:
        await policy.start()
    assert not caplog.records


async def test_a_model_that_is_not_listed_is_asked_all_the_same(caplog: pytest.LogCaptureFixture):
    async with (
        serving(completion("fine"), status(404), models=("a", "b")) as endpoint,
        policy_for(endpoint) as policy,
    ):
        await policy.start()
        assert "does not list 'm'; it lists a, b" in caplog.text
        assert (await policy.chat(HELLO, [], SAMPLING)).text == "fine"
        with pytest.raises(EndpointRefused, match="it lists a, b"):
            await policy.chat(HELLO, [], SAMPLING)


async def test_cancelling_gives_the_budget_back():
    async with serving(silence(5.0)) as endpoint, policy_for(endpoint, budget_tokens=1000) as policy:
        task = asyncio.create_task(policy.chat(HELLO, [], SAMPLING))
        await until_asked(endpoint)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not policy._reservations


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost:8000", "model": "m"}, "http://"),
        ({"url": "http://x", "model": ""}, "name of a model"),
        ({"url": "http://x", "model": "m", "attempts": 0}, "attempts"),
        ({"url": "http://x", "model": "m", "budget_money": 1.0}, "prices"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        EndpointPolicy(EndpointSettings(**settings))
