"""Programs that wait for their turn: how many run at once, in which order, and whose clock stands still."""

import asyncio
import time
from functools import partial

import pytest

from agentrl_sandbox import (
    Level,
    Limits,
    PoolExhausted,
    SandboxConfigError,
    SessionClosed,
    Status,
    open_sandbox,
)
from agentrl_sandbox.crowd import Crowd, while_waiting


async def test_no_more_run_at_once_than_there_are_places_and_all_get_their_turn() -> None:
    # Fails when `take` does not count, or `leave` forgets who waits.
    crowd, most, order = Crowd(2), 0, []

    async def one(number: int) -> None:
        nonlocal most
        async with crowd.turn():
            most = max(most, crowd.running)
            order.append(number)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert (most, order, crowd.running, crowd.waiting) == (2, list(range(20)), 0, 0)


async def test_who_stops_waiting_takes_no_place_along() -> None:
    crowd = Crowd(1)
    async with crowd.turn():
        leaving = [asyncio.create_task(_hold(crowd)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in leaving[:2]:
            task.cancel()
        await asyncio.gather(*leaving[:2], return_exceptions=True)
        assert crowd.waiting == 1
    # Cancelled in the moment in which the place is given.
    leaving[2].cancel()
    await asyncio.gather(leaving[2], return_exceptions=True)
    async with asyncio.timeout(5):
        await _hold(crowd)
    assert crowd.running == 0


async def _hold(crowd: Crowd) -> None:
    async with crowd.turn():
        await asyncio.sleep(0.001)


def test_several_event_loops_share_the_places() -> None:
    # Fails with an asyncio.Semaphore, which belongs to one loop.
    crowd = Crowd(1)

    async def many() -> None:
        await asyncio.gather(*(_hold(crowd) for _ in range(30)))

    async def both() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(
                many(), asyncio.to_thread(asyncio.run, many()), asyncio.to_thread(asyncio.run, many())
            )

    asyncio.run(both())
    assert (crowd.running, crowd.waiting) == (0, 0)


async def test_a_wait_without_end_says_who_was_waited_for() -> None:
    crowd = Crowd(1, wait_limit_s=0.05)
    async with crowd.turn():
        with pytest.raises(PoolExhausted, match=r"1 programs run \(max_running = 1\) and 0 more wait"):
            await _hold(crowd)
    await _hold(crowd)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "4"])
def test_wrong_numbers_of_places(wrong: object) -> None:
    with pytest.raises(SandboxConfigError, match="max_running must be a whole number"):
        open_sandbox("local", max_running=wrong)


@pytest.mark.slow
async def test_a_crowd_of_busy_loops_ends_as_time_outs_and_the_others_get_their_answers() -> None:
    # 30 busy loops among 60 sessions: each gets its limit of CPU time, and none is taken for starved.
    async with open_sandbox(
        "local", min_level=Level.FILTERED, zygotes=1, max_running=4, limits=Limits(time_s=0.3, grace_s=0.3)
    ) as sandbox:

        async def one(number: int) -> Status:
            async with await sandbox.open() as session:
                code = "while True: pass" if number % 2 else "sum(range(1000))"
                return (await session.run(code)).status

        ended = await asyncio.gather(*(one(number) for number in range(60)))
        assert ended[::2] == [Status.OK] * 30
        assert ended[1::2] == [Status.TIMEOUT] * 30


@pytest.mark.slow
async def test_the_wait_counts_against_no_clock_of_the_program() -> None:
    async with (
        open_sandbox("local", min_level=Level.FILTERED, zygotes=1, max_running=1) as sandbox,
        await sandbox.open() as first,
        await sandbox.open() as second,
    ):
        slow = asyncio.create_task(first.run("import time; time.sleep(1.0)"))
        await asyncio.sleep(0.1)
        result = await second.run("'quick'", timeout=0.2)
        assert (result.status, result.wall_s < 0.8) == (Status.OK, True), result.text
        await slow


async def test_a_session_that_is_closed_while_it_waits_does_not_hold_its_caller() -> None:
    async with (
        open_sandbox("local", min_level=Level.FILTERED, zygotes=1, max_running=1) as sandbox,
        await sandbox.open() as first,
        await sandbox.open() as second,
    ):
        slow = asyncio.create_task(first.run("import time; time.sleep(60)", timeout=60))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(second.run("1"))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            await second.close()
        with pytest.raises(SessionClosed):
            await waiting
        slow.cancel()


async def test_a_caller_may_stop_its_own_clock_meanwhile() -> None:
    # A tool of an environment has a limit in wall time; the crowd's time is not its time.
    from agentrl_envs.user_code import CallThread, LimitExceeded, call

    crowd, thread = Crowd(1), CallThread("tool")

    async def tool() -> str:
        async with crowd.turn():
            await asyncio.sleep(0.02)
        return "done"

    async with crowd.turn():
        began = time.monotonic()
        calls = [asyncio.create_task(call(partial(call, tool, thread, 0.3), thread, 0.4)) for _ in range(2)]
        await asyncio.sleep(1.0)
    assert await asyncio.gather(*calls) == ["done", "done"]
    assert time.monotonic() - began >= 1.0
    with pytest.raises(LimitExceeded):
        await call(partial(asyncio.sleep, 5), thread, 0.05)
    assert while_waiting.get() is None
