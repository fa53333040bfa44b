"""Calls of a Docker engine whose callers are gone when they return."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from agentrl_sandbox import SandboxUnavailable
from tests.needed import needed

needed("docker", "the docker backend needs docker-py (pip install agentrl[docker])")
from agentrl_sandbox.docker.engine import EngineCalls


class Held:
    """A call that returns one end of a connection when `go` is set."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.given, self.other = socket.socketpair()

    def __call__(self) -> socket.socket:
        self.begun.set()
        assert self.go.wait(10)
        return self.given

    def closes(self, within_s: float = 0.0) -> bool:
        """Whether the end that was returned is closed: then the other has no more to read."""
        self.other.settimeout(within_s)
        try:
            return self.other.recv(1) == b""
        except (BlockingIOError, TimeoutError):
            return False


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.go.set()
    held.other.close()
    held.given.close()


@pytest.fixture
def calls() -> Iterator[EngineCalls]:
    calls = EngineCalls(threads=1)
    yield calls
    calls.close()


async def begun(held: Held) -> None:
    assert await asyncio.to_thread(held.begun.wait, 10)


async def test_what_comes_after_a_cancelled_caller_is_discarded_before_it_goes(
    held: Held, calls: EngineCalls
) -> None:
    caller = asyncio.ensure_future(calls.run("attach", held, discard=socket.socket.close))
    await begun(held)
    caller.cancel()
    await asyncio.wait({caller}, timeout=0.05)
    assert not caller.done(), "it waits, so that what it cleans up next finds nothing open"
    held.go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert held.closes()


async def test_a_caller_that_is_cancelled_twice_does_not_wait_and_nothing_is_left(
    held: Held, calls: EngineCalls
) -> None:
    caller = asyncio.ensure_future(calls.run("attach", held, discard=socket.socket.close))
    await begun(held)
    for _ in range(2):
        caller.cancel()
        await asyncio.wait({caller}, timeout=0.05)
    assert caller.cancelled()
    held.go.set()
    assert await asyncio.to_thread(held.closes, 10)


async def test_what_comes_after_the_limit_is_discarded(held: Held, calls: EngineCalls) -> None:
    with pytest.raises(SandboxUnavailable, match=r"cannot attach: .* did not answer within 0\.05 s"):
        await calls.run("attach", held, limit_s=0.05, discard=socket.socket.close)
    held.go.set()
    assert await asyncio.to_thread(held.closes, 10)


async def test_a_call_that_has_no_thread_yet_is_never_made(held: Held, calls: EngineCalls) -> None:
    first = asyncio.ensure_future(calls.run("attach", held))
    await begun(held)
    second = Held()
    caller = asyncio.ensure_future(calls.run("attach", second, discard=socket.socket.close))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    held.go.set()
    assert await first is held.given
    assert not second.begun.is_set()
    second.given.close()
    second.other.close()
