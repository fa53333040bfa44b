"""Calling what users write: sync or async, with a limit, without blocking the event loop.

Knows nothing of environments, tools or rewards. A Python thread cannot be killed: a sync function that
outlives its limit is abandoned in its (daemon) thread, and later calls go to a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from agentrl_sandbox.crowd import while_waiting

__all__ = ["CallThread", "LimitExceeded", "call", "limited"]

T = TypeVar("T")
_GRACE_S = 1.0  # how long a cancelled coroutine may take to clean up before it is left behind


class LimitExceeded(Exception):
    """A call did not end within its limit."""


class Waits:
    """Adds up the seconds in which a call waits for its turn in a sandbox; waits that overlap count once."""

    def __init__(self) -> None:
        self._outer = while_waiting.get()
        self._under_way = 0
        self._since = self._ended = 0.0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Entered by the sandbox for one wait."""
        with self._outer() if self._outer else contextlib.nullcontext():
            if self._under_way == 0:
                self._since = time.monotonic()
            self._under_way += 1
            try:
                yield
            finally:
                self._under_way -= 1
                if self._under_way == 0:
                    self._ended += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Seconds waited so far."""
        return self._ended + (time.monotonic() - self._since if self._under_way else 0.0)


class CallThread:
    """One lazily started daemon thread that runs sync functions in order.

    One thread per environment (and not a pool) because things made in `setup`, such as an sqlite connection,
    may only be used from the thread that made them.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Any] | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Result of `function()`. When the waiter is cancelled the thread is left behind."""
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._queue,), name=self._name, daemon=True).start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put((contextvars.copy_context(), function, loop, future))
        try:
            return await future
        except asyncio.CancelledError:
            self.stop()
            raise

    def stop(self) -> None:
        """Let the thread end once it is done with what it has; the next `run` starts another."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None


def _serve(jobs: queue.SimpleQueue[Any]) -> None:
    while (job := jobs.get()) is not None:
        context, function, loop, future = job
        try:
            outcome, failed = context.run(function), False
        except BaseException as error:  # handed to the waiter, whatever it is
            outcome, failed = error, True
        try:
            loop.call_soon_threadsafe(_settle, future, outcome, failed)
        except RuntimeError:
            return  # the loop has closed: nobody waits any more
        del job, future, outcome


def _settle(future: asyncio.Future[Any], outcome: Any, failed: bool) -> None:
    if future.done():
        return
    if not failed:
        future.set_result(outcome)
    elif isinstance(outcome, StopIteration):  # a future refuses it
        future.set_exception(RuntimeError(f"the function raised {outcome!r}"))
    else:
        future.set_exception(outcome)


async def call(function: Callable[[], Any], thread: CallThread) -> Any:
    """Result of `function()`: awaited when it is async, else run in `thread`."""
    if inspect.iscoroutinefunction(inspect.unwrap(getattr(function, "func", function))):
        return await function()
    outcome = await thread.run(function)
    return await outcome if inspect.isawaitable(outcome) else outcome


async def limited(work: Coroutine[Any, Any, T] | Awaitable[T], limit_s: float) -> T:
    """Result of `work`; LimitExceeded after `limit_s` seconds, even when `work` refuses to be cancelled.

    The time in which `work` waits for its turn in a crowded sandbox does not count.
    """
    began, waits = time.monotonic(), Waits()
    token = while_waiting.set(waits.one)
    task: asyncio.Task[T] = asyncio.ensure_future(work)  # pyright: ignore[reportAssignmentType]
    while_waiting.reset(token)
    try:
        while not task.done() and (left := limit_s + waits.seconds - (time.monotonic() - began)) > 0:
            await asyncio.wait({task}, timeout=max(left, 0.05))
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    if task.done():
        return task.result()
    await _cancel(task)
    raise LimitExceeded(f"no end within {limit_s:g} s")


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_GRACE_S)
    # Fetched so that asyncio does not log "exception was never retrieved" for work nobody waits for any more.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
