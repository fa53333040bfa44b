"""Episodes played with messages: tools natively and by code blocks, limits, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, StopReason
from agentrl.evaluation.results import Record
from agentrl.evaluation.run import Plan, chat_player, evaluate
from agentrl.inference.endpoint.client import EndpointPolicy
from agentrl.inference.endpoint.errors import BudgetExceeded, EndpointRefused
from agentrl.inference.endpoint.settings import EndpointSettings
from agentrl.rollout.endpoint_completer import ChatResult, run_chat_episode
from agentrl.rollout.token_completer import Decoding, Dispatch
from agentrl_envs import Env, Finish, tool
from tests.agentrl.inference.faulty_endpoint import Step, call, completion, serving, status


class Doubling(Env):
    """The answer is twice the number; a tool doubles."""

    max_turns = 3

    def prompt(self, row: Mapping[str, Any]) -> str:
        return f"Double {row['number']}."

    @tool
    async def python(self, code: str) -> str:
        "Run it."
        if code == "stop":
            raise Finish(reward=1.0, text="over")
        return str(2 * int(code))

    def reward(self, row: Mapping[str, Any], answer: str | None) -> bool:
        return answer is not None and answer.endswith(str(2 * row["number"]))


async def play(*steps: Step, tool_format: Any = "native", **settings: Any) -> tuple[ChatResult, list[Any]]:
    async with serving(*steps) as endpoint:
        policy = EndpointPolicy(
            EndpointSettings(
                url=endpoint.url, model="m", attempts=2, budget_tokens=settings.pop("budget", 0)
            ),
            period_s=0.01,
        )
        try:
            result = await run_chat_episode(
                Doubling,
                policy,
                row={"number": 21},
                dispatch=Dispatch("e", 0, "p", 0, seed=3),
                settings=RolloutSettings(**settings),
                tool_format=tool_format,
            )
        finally:
            await policy.close()
    return result, endpoint.requests


async def test_native_tools():
    result, requests = await play(
        completion(None, finish_reason="tool_calls", tool_calls=[call("python", '{"code": "21"}')]),
        completion("It is 42"),
    )
    episode = result.episode
    assert (episode.reward, episode.stop_reason, episode.answer) == (1.0, StopReason.ANSWERED, "It is 42")
    assert [(c.name, c.result, c.ok) for c in episode.tool_calls] == [("python", "42", True)]
    assert requests[1]["messages"][-1] == {"role": "tool", "tool_call_id": "c1", "content": "42"}
    assert result.usage.completion_tokens == 10
    assert episode.num_trainable == 0
    assert Episode.from_json(episode.to_json()) == episode


async def test_code_blocks():
    # The endpoint cuts the stop text off, as all of them do.
    result, requests = await play(
        completion("I compute.\n<code>\n```python\n21\n```\n"), completion("42"), tool_format="code"
    )
    assert result.episode.reward == 1.0
    assert "tools" not in requests[0]
    assert requests[0]["stop"] == ["</code>"]
    assert "<code>" in requests[0]["messages"][0]["content"]
    said, shown = requests[1]["messages"][-2:]
    assert said["content"] == "I compute.\n<code>\n```python\n21\n```\n</code>"
    assert shown == {"role": "user", "content": "<interpreter>\n42\n</interpreter>"}


async def test_bad_arguments_go_back_to_the_model():
    result, requests = await play(
        completion(None, finish_reason="tool_calls", tool_calls=[call("python", '{"code": ')]),
        completion("42"),
    )
    assert result.episode.reward == 1.0
    assert not result.episode.tool_calls[0].ok
    assert requests[1]["messages"][-1]["role"] == "tool"


async def test_finish_ends_it():
    calls = [call("python", '{"code": "stop"}')]
    result, _ = await play(completion(None, finish_reason="tool_calls", tool_calls=calls))
    assert (result.episode.stop_reason, result.episode.reward) == (StopReason.FINISHED, 1.0)


async def test_the_last_turn_may_not_call():
    calls = [call("python", '{"code": "21"}')]
    result, requests = await play(completion(None, finish_reason="tool_calls", tool_calls=calls))
    assert (result.episode.stop_reason, len(requests), result.episode.reward) == (
        StopReason.MAX_TURNS,
        3,
        0.0,
    )


async def test_a_truncated_message_has_no_answer():
    result, _ = await play(completion("It is 42", finish_reason="length"))
    assert (result.episode.stop_reason, result.episode.reward) == (StopReason.MAX_TOKENS, 0.0)


async def test_an_endpoint_that_fails_is_a_failure_and_no_reward():
    result, _ = await play(status(500))
    failure = result.episode.failure
    assert failure is not None
    assert (failure.boundary, failure.error, result.episode.reward) == ("policy", "EndpointUnavailable", None)


async def test_a_refused_prompt_is_a_failure_of_its_episode():
    result, requests = await play(status(400, error={"message": "no", "code": "content_filter"}))
    failure = result.episode.failure
    assert failure is not None
    assert (failure.boundary, failure.error, len(requests)) == ("policy", "RequestRefused", 1)


async def test_a_context_is_used_to_its_end():
    """A server with a context of 200 tokens, of which every message takes 60."""
    asked: list[int] = []

    async def small(request: Any, body: dict[str, Any]) -> Any:
        prompt, limit = 60 * len(body["messages"]), body["max_tokens"]
        asked.append(limit)
        if prompt + limit > 200:
            text = (
                "This model's maximum context length is 200 tokens. However, you requested "
                f"{prompt + limit} tokens ({prompt} in the messages, {limit} in the completion)."
            )
            return await status(400, error={"message": text})(request, body)
        step = completion(None, finish_reason="tool_calls", tool_calls=[call("python", '{"code": "21"}')])
        return await step(request, body)

    result, _ = await play(small, max_tokens=100, max_turns=9)
    assert result.episode.stop_reason is StopReason.CONTEXT_FULL
    # 60 tokens of prompt leave 100 and more, 180 leave 20, and 300 leave none.
    assert asked == [100, 95, 20, 90]


async def test_a_spent_budget_ends_the_evaluation_and_not_the_episode():
    with pytest.raises(BudgetExceeded):
        await play(completion(), budget=20)


def after(seconds: float, step: Step) -> Step:
    async def late(request: Any, body: dict[str, Any]) -> Any:
        await asyncio.sleep(seconds)
        return await step(request, body)

    return late


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (completion("never asked"), BudgetExceeded),
        (status(429, error={"message": "pay", "code": "insufficient_quota"}), EndpointRefused),
    ],
    ids=["budget", "quota"],
)
async def test_answers_in_flight_are_kept_when_nothing_more_can_be_asked(last: Step, error: type[Exception]):
    """Three at a time: the first answer spends the budget, or the quota is gone after it; two are on the way."""
    spent = 1050 if error is BudgetExceeded else 10
    steps = [completion("42", prompt_tokens=spent), *[after(0.1, completion("42"))] * 2, last]
    records: list[Record] = []
    async with serving(*steps) as endpoint:
        policy = EndpointPolicy(EndpointSettings(url=endpoint.url, model="m", budget_tokens=1100))
        play = chat_player(policy, lambda _: Doubling(), RolloutSettings(max_tokens=20), Decoding(), "native")
        plan = Plan([{"id": f"p{n}", "number": 21} for n in range(9)], samples=1, seed=0)
        with pytest.raises(error):
            await evaluate(plan, play, concurrency=3, on_record=records.append)
        await policy.close()
    assert [record.reward for record in records] == [1.0, 1.0, 1.0]


async def test_cancelling_closes_the_environment():
    closed = asyncio.Event()

    class Closing(Doubling):
        def close(self) -> None:
            loop.call_soon_threadsafe(closed.set)

    async def slow(request: Any, body: dict[str, Any]) -> Any:
        asked.set()
        await asyncio.sleep(5)
        return await completion()(request, body)

    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    async with serving(slow) as endpoint:
        policy = EndpointPolicy(EndpointSettings(url=endpoint.url, model="m"))
        task = asyncio.create_task(
            run_chat_episode(
                Closing,
                policy,
                row={"number": 1},
                dispatch=Dispatch("e", 0, "p", 0),
                settings=RolloutSettings(),
            )
        )
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await policy.close()
    await asyncio.wait_for(closed.wait(), 2)
