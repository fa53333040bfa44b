"""The dialects beside chat completions: the same agent gives the tokens of the direct path in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from agentrl.episode import Episode
from agentrl.rollout.gateway import anthropic, chat, responses
from agentrl.rollout.gateway.history import History
from agentrl.rollout.gateway.request import Kept, Refused
from agentrl.rollout.gateway.server import read_request
from agentrl_envs.model import Access
from benchmarks.gateway import TOOL
from tests.agentrl.test_gateway import ASK, CODE, Direct, client, play, through

SCRIPT = [CODE, f"Let me see.\n{CODE}", "yes<|end|>"]
COUNTS = {"gateway/requests": 3, "gateway/opened": 1, "gateway/extended": 2}
FUNCTION = {"type": "function", **TOOL["function"]}
NATIVE = {
    "name": "python",
    "description": "Run Python.",
    "input_schema": TOOL["function"]["parameters"],
}


async def same_as_direct(agent: Any) -> Episode:
    there, here = await play(through(agent), SCRIPT), await play(Direct, SCRIPT)
    assert there.failure is None
    assert there.segments == here.segments
    assert (there.reward, there.answer) == (1.0, "yes")
    assert dict(there.counts) == COUNTS
    return there


@pytest.mark.parametrize("kept", [False, True], ids=["items", "previous_response_id"])
async def test_responses(kept: bool) -> None:
    async def agent(access: Access) -> str:
        async with client(access) as api:
            items: Any = list(ASK)
            before: Any = {}
            while True:
                said = await api.responses.create(model="m", input=items, tools=[FUNCTION], **before)
                calls = [item for item in said.output if item.type == "function_call"]
                if not calls:
                    return said.output_text
                results = [
                    {"type": "function_call_output", "call_id": c.call_id, "output": "out"} for c in calls
                ]
                if kept:
                    items, before = results, {"previous_response_id": said.id}
                else:
                    items += [*[item.model_dump(exclude_none=True) for item in said.output], *results]

    await same_as_direct(agent)


async def test_responses_that_stream() -> None:
    async def agent(access: Access) -> str:
        async with client(access) as api:
            items: Any = list(ASK)
            while True:
                async with api.responses.stream(model="m", input=items, tools=[FUNCTION]) as stream:  # type: ignore[list-item]
                    kinds = [event.type async for event in stream]
                    said = await stream.get_final_response()
                assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
                calls = [item for item in said.output if item.type == "function_call"]
                if not calls:
                    return said.output_text
                items += [
                    item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in said.output
                ]
                items += [
                    {"type": "function_call_output", "call_id": c.call_id, "output": "out"} for c in calls
                ]

    await same_as_direct(agent)


@pytest.mark.parametrize("streams", [False, True])
async def test_anthropic_messages(streams: bool) -> None:
    async def agent(access: Access) -> str:
        async with aiohttp.ClientSession(access.url, headers={"x-api-key": access.key}) as http:
            messages: list[Any] = list(ASK)
            while True:
                body = {
                    "model": "m",
                    "max_tokens": 500,
                    "messages": messages,
                    "tools": [NATIVE],
                    "stream": streams,
                }
                async with http.post("/v1/messages", json=body) as answer:
                    text = await answer.text()
                content = _streamed(text) if streams else json.loads(text)["content"]
                uses = [block for block in content if block["type"] == "tool_use"]
                if not uses:
                    return content[0]["text"]
                results = [{"type": "tool_result", "tool_use_id": u["id"], "content": "out"} for u in uses]
                messages += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]

    await same_as_direct(agent)


def _streamed(text: str) -> list[Any]:
    """The blocks of a stream of events."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    for event in events:
        if event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            else:
                block["input"] = json.loads(delta["partial_json"])
    assert [event["type"] for event in events][-2:] == ["message_delta", "message_stop"]
    return blocks


async def test_refusals_in_each_dialect() -> None:
    async def agent(access: Access) -> str:
        head = {"Authorization": f"Bearer {access.key}"}
        async with aiohttp.ClientSession(access.url, headers=head) as http:
            body = {"model": "m", "input": "p", "background": True}
            async with http.post("/v1/responses", json=body) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (400, "refused_background")
            body = {"model": "m", "input": "p", "previous_response_id": "resp_none"}
            async with http.post("/v1/responses", json=body) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_response")
            async with http.post(
                "/v1/messages", json={"model": "m", "messages": ASK, "max_tokns": 1}
            ) as answer:
                assert "did you mean 'max_tokens'" in (await answer.json())["error"]["message"]
        return "yes"

    episode = await play(through(agent), SCRIPT)
    assert (episode.reward, len(episode.turns)) == (1.0, 0)


CALLED = [
    *ASK,
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "python", "arguments": '{"code": "1"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
]
BODIES: dict[Any, dict[str, Any]] = {
    chat: {
        "model": "m",
        "messages": CALLED,
        "tools": [TOOL],
        "tool_choice": "auto",
        "stop": ["x"],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    responses: {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c1", "name": "python", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
        ],
        "tools": [FUNCTION],
        "tool_choice": "auto",
        "max_output_tokens": 5,
    },
    anthropic: {
        "model": "m",
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "python", "input": {"code": "1"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "1"}]},
        ],
        "tools": [NATIVE],
        "tool_choice": {"type": "auto"},
        "max_tokens": 5,
    },
}
STRANGE = (None, [], {}, "x", 7, -1.5, True, [7], [[]], {"a": 7}, [{}], [None])


def with_each_value_replaced(value: Any) -> Iterator[Any]:
    """`value` with a strange value in one place, for all places and strange values."""
    yield from STRANGE
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from ({**value, name: other} for other in with_each_value_replaced(inner))
            yield {key: kept for key, kept in value.items() if key != name}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in with_each_value_replaced(inner))


@pytest.mark.parametrize("dialect", BODIES, ids=lambda dialect: dialect.__name__.rpartition(".")[2])
def test_a_value_of_another_type_is_refused_and_breaks_nothing(dialect: Any) -> None:
    read, refused = 0, list[int]()
    for body in with_each_value_replaced(BODIES[dialect]):
        if not isinstance(body, dict):
            continue
        try:
            request = read_request(dialect, body, Kept())
        except Refused as error:
            refused.append(error.status)
        else:
            assert all(isinstance(message["content"], str) for message in request.messages)
            assert all(isinstance(spec.parameters, dict) and spec.name for spec in request.tools)
            History().known(request.messages)
            read += 1
    assert read > 20
    assert len(refused) > 100
    assert set(refused) <= {400, 404}


@pytest.mark.parametrize("dialect", [chat, anthropic])
def test_what_was_read_before_is_not_read_again_and_an_edit_is_seen(dialect: Any) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text} for text in "abc"]}
    kept = Kept()
    first = read_request(dialect, body, kept).messages
    edited = [*body["messages"][:1], {"role": "user", "content": "x"}, *body["messages"][2:]]
    second = read_request(dialect, {**body, "messages": edited}, kept).messages
    assert [message["content"] for message in second] == ["a", "x", "c"]
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, False, True]
    shorter = read_request(dialect, {**body, "messages": edited[2:]}, kept).messages
    assert [message["content"] for message in shorter] == ["c"]


def test_a_conversation_is_looked_through_from_where_the_last_request_ended() -> None:
    history = History()
    ask, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": []}
    history.add([ask], said, ("b", "b"), [])
    told: Any = [ask, {"role": "assistant", "content": "b and more"}]
    assert history.known(told) == [ask, said]
    # What was added to a message of ours waits for the next one, in a later request too.
    assert history.known([*told, {"role": "user", "content": "c"}])[2]["content"] == "and more\n\nc"
    assert history.known([*told, {"role": "user", "content": "d"}])[2]["content"] == "and more\n\nd"
