"""Parts of the remote pool on their own: settings, messages, the queue, kept replies, metrics."""

import argparse
import asyncio
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_sandbox import Limits, Result, SandboxConfigError, Status, open_sandbox
from agentrl_sandbox.remote.messages import (
    BadMessage,
    limits_above,
    limits_from_json,
    limits_to_json,
    limits_within,
    result_from_json,
    result_to_json,
)
from agentrl_sandbox.result import File
from agentrl_sandbox.server import ServerSettings, ceiling_of
from agentrl_sandbox.server.metrics import Histogram
from agentrl_sandbox.server.queue import QueueFull, RunQueue
from agentrl_sandbox.server.replies import ReplyForgotten, ReplyStore, RequestConflict


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_an_address_others_can_reach_needs_a_token(host: str) -> None:
    with pytest.raises(SandboxConfigError, match="needs a token"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, token="t").host == host


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"urls": ()}, "needs urls"),
        ({"urls": "localhost:80"}, "is not the URL"),
        ({"urls": "http://a", "patience_s": 0}, "patience_s must be positive"),
        ({"urls": "http://a", "url": "x"}, "unknown setting url"),
    ],
)
def test_wrong_settings_of_the_client(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SandboxConfigError, match=says):
        open_sandbox("remote", **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"port": 70000}, "port 70000"),
        ({"lease_s": 0}, "lease_s must be positive"),
        ({"max_sessions": 0}, "max_sessions must be at least 1"),
        ({"max_waiting": -1}, "max_waiting must not be negative"),
        ({"client_limit_s": float("nan")}, "client_limit_s must be positive and finite"),
        ({"reply_mb": 0}, "reply_mb must be positive"),
    ],
)
def test_wrong_settings_of_the_server(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SandboxConfigError, match=says):
        ServerSettings(**settings)


results = st.builds(
    Result,
    status=st.sampled_from(Status),
    stdout=st.text(),
    stderr=st.text(),
    value=st.none() | st.text(),
    error=st.none() | st.text(),
    truncated=st.booleans(),
    wall_s=st.floats(0, 1e6),
    cpu_s=st.floats(0, 1e6),
    signal=st.none() | st.integers(1, 64),
    exit_code=st.none() | st.integers(-(2**31), 2**31),
    session_alive=st.booleans(),
    files=st.lists(st.builds(File, st.text(), st.integers(0, 2**40))).map(tuple),
)


@given(results)
def test_a_result_survives_the_wire_whole(result: Result) -> None:
    # Fails when a field of Result is left out of result_to_json or result_from_json.
    assert result_from_json(json.loads(json.dumps(result_to_json(result)))) == result


def test_limits_survive_the_wire_whole() -> None:
    limits = Limits(time_s=3.5, memory_mb=100, output_bytes=512)
    assert limits_from_json(json.loads(json.dumps(limits_to_json(limits)))) == limits
    assert limits_from_json(limits_to_json(None)) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_a_result_or_a_bad_message(message: Any) -> None:
    with pytest.raises(BadMessage):
        result_from_json(message)


FIELDS = [f.name for f in dataclasses.fields(Result)]


@given(st.sampled_from(FIELDS), st.sampled_from([{}, [5], "text", 1.5, True]))
def test_a_result_with_one_other_field_is_refused_or_well_typed(name: str, value: Any) -> None:
    message = result_to_json(Result(Status.OK)) | {name: value}
    try:
        result = result_from_json(message)
    except BadMessage:
        return
    kept = getattr(result, name)
    assert isinstance(kept, type(value)) or (name, value) == ("files", [])


def test_limits_above_a_ceiling_are_listed() -> None:
    wanted = Limits(memory_mb=1024, time_s=60.0)
    ceiling = Limits(memory_mb=512, time_s=60.0)
    assert limits_above(wanted, ceiling) == ["memory_mb 1024 is above this server's 512"]
    assert limits_above(wanted, wanted) == []


async def test_the_queue_is_first_come_first_served_and_bounded() -> None:
    queue = RunQueue(running=1, waiting=2, wait_limit_s=10.0)
    order: list[int] = []

    async def work(number: int) -> None:
        async with queue.turn():
            order.append(number)
            await asyncio.sleep(0)

    async with queue.turn() as waited_s:
        assert waited_s < 1.0
        tasks = [asyncio.create_task(work(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        assert (queue.running, queue.waiting) == (1, 2)
        with pytest.raises(QueueFull, match="1 programs run and 2 wait") as caught:
            await work(3)
        assert caught.value.retry_after_s == 1
    await asyncio.gather(*tasks)
    assert order == [1, 2]
    assert (queue.running, queue.waiting) == (0, 0)


async def test_waiting_for_a_turn_has_an_end_and_leaves_the_queue_whole() -> None:
    queue = RunQueue(running=1, waiting=5, wait_limit_s=0.02)
    async with queue.turn():
        with pytest.raises(QueueFull, match=r"no turn came within 0\.02 s"):
            async with queue.turn():
                raise AssertionError("there was no turn to have")
    async with queue.turn():
        assert (queue.running, queue.waiting) == (1, 0)


async def test_a_cancelled_wait_gives_its_place_up() -> None:
    queue = RunQueue(running=1, waiting=1, wait_limit_s=10.0)

    async def wait() -> None:
        async with queue.turn():
            raise AssertionError("cancelled before its turn")

    async with queue.turn():
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert queue.waiting == 0


async def test_replies_are_kept_for_a_while_and_up_to_their_bytes() -> None:
    store = ReplyStore(keep_s=60.0, capacity=10)
    calls: list[bytes] = []

    def work(reply: bytes) -> Any:
        async def do() -> bytes:
            calls.append(reply)
            return reply

        return do

    for number in (b"1111", b"2222", b"3333"):  # 12 bytes: the first has to go
        assert await store.once(f"id-{number[:1].decode()}", b"digest", work(number)) == number
    assert store.bytes == 8
    assert await store.once("id-3", b"digest", work(b"again")) == b"3333"
    with pytest.raises(ReplyForgotten, match="kept no longer"):  # and is not run a second time
        store.once("id-1", b"digest", work(b"again"))
    with pytest.raises(RequestConflict):
        store.once("id-3", b"another", work(b"again"))
    await store.once("id-4", b"digest", work(b"4" * 11))  # more than there is room for
    assert store.bytes == 0
    assert calls == [b"1111", b"2222", b"3333", b"4" * 11]


async def test_replies_are_forgotten_with_their_time() -> None:
    store = ReplyStore(keep_s=0.05, capacity=1000)

    async def work() -> bytes:
        return b"reply"

    for number in range(50):
        await store.once(f"id-{number}", b"digest", work)
    await asyncio.sleep(0.1)
    await store.once("another", b"digest", work)
    assert (len(store), store.bytes) == (1, 5)


async def test_a_refused_request_is_not_kept() -> None:
    store = ReplyStore(keep_s=60.0, capacity=10)
    answers: list[Exception | bytes] = [QueueFull("full", 1), b"5"]

    async def work() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(QueueFull):
        await store.once("request", b"digest", work)
    assert await store.once("request", b"digest", work) == b"5"


async def test_calls_that_wait_for_their_session_fill_the_queue_and_take_no_turn() -> None:
    # Fails when the session's lock is taken before the queue is asked.
    queue, session = RunQueue(running=4, waiting=3, wait_limit_s=10.0), asyncio.Lock()
    done = 0

    async def call() -> None:
        nonlocal done
        async with queue.turn(session):
            assert queue.running == 1
            await asyncio.sleep(0.001)
            done += 1

    outcomes = await asyncio.gather(*(call() for _ in range(600)), return_exceptions=True)
    assert done == 4
    assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 596
    async with queue.turn(asyncio.Lock()):  # another session is served
        assert queue.waiting == 0


async def test_a_limit_that_passes_while_a_session_is_waited_for_leaves_it_free() -> None:
    queue, session = RunQueue(running=1, waiting=3, wait_limit_s=0.05), asyncio.Lock()
    async with queue.turn(asyncio.Lock()):
        with pytest.raises(QueueFull, match="no turn came within"):
            async with queue.turn(session):
                pass
    assert not session.locked()
    assert (queue.running, queue.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time=3", "'time' is no limit; there are time_s, memory_mb"),
        ("time_s", "not of the form name=number"),
        ("time_s=fast", "not of the form name=number"),
        ("memory_mb=1e12", "outside 32"),
        ("time_s=nan", "outside"),
        ("as_dict=1", "'as_dict' is no limit"),
    ],
)
def test_wrong_ceilings(text: str, says: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        ceiling_of(text)


def test_a_ceiling_bounds_what_it_names() -> None:
    ceiling = ceiling_of("time_s=2.5, memory_mb=2048,")
    assert (ceiling.time_s, ceiling.memory_mb, ceiling.files) == (2.5, 2048, 10_000_000)
    assert limits_within(Limits(), ceiling) == dataclasses.replace(Limits(), time_s=2.5)


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(seconds)
    assert histogram.lines("t") == [
        't_bucket{le="0.1"} 2',
        't_bucket{le="1"} 3',
        't_bucket{le="+Inf"} 4',
        "t_sum 3.65",
        "t_count 4",
    ]
