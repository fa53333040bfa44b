"""Calling what users write: sync or async, with a limit, without blocking the event loop.

Whatever user code raises, SystemExit and CancelledError among it, comes back as one kind of error. Knows
nothing of environments, tools or rewards. A Python thread cannot be killed: a sync function that outlives its
limit is abandoned in its (daemon) thread, and later calls go to a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import queue
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from agentrl_sandbox.crowd import while_waiting

from .errors import EnvError
from .raised import Raised, error_text, place, raised_by_statement, spoken

__all__ = ["CallThread", "LimitExceeded", "call", "ends_caller"]

_TURNS = 10  # of the event loop after a limit, for one that is busy with thousands of others
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

    def __init__(self, name: str, tasks: weakref.WeakSet[asyncio.Task[Any]] | None = None) -> None:
        self._name = name
        self.tasks = weakref.WeakSet[asyncio.Task[Any]]() if tasks is None else tasks
        """What user code has started with `asyncio.create_task` and the like."""
        self._queue: queue.SimpleQueue[Any] | None = None

    async def run(self, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """What `function()` returned or raised. When the waiter is cancelled the thread is left behind."""
        end = await _begin()
        try:
            return await self._run(function)
        finally:
            end()

    async def _run(self, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._queue,), name=self._name, daemon=True).start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
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

    def end(self) -> None:
        """Stop, and cancel the tasks that user code has left behind."""
        self.stop()
        for task in list(self.tasks):
            task.cancel()


FRESH_CALLS, FRESH_S = 32, 0.02
"""Calls that may have begun within the last so many seconds and have not ended."""

_PERMITS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


async def _begin() -> Callable[[], None]:
    """Wait until a call may begin; returns what to call when it has ended.

    A thread that waits for the interpreter's lock wakes every 5 ms. Thousands that begin together, as when
    ten thousand episodes start, spend more on that than on what they do. A call that takes its time blocks
    on something else, and is forgotten.
    """
    loop = asyncio.get_running_loop()
    permits = _PERMITS.setdefault(loop, asyncio.Semaphore(FRESH_CALLS))
    waiting = while_waiting.get() if permits.locked() else None
    with waiting() if waiting else contextlib.nullcontext():
        await permits.acquire()
    begun = True

    def end() -> None:
        nonlocal begun
        if begun:
            begun = False
            timer.cancel()
            permits.release()

    timer = loop.call_later(FRESH_S, end)
    return end


def _serve(jobs: queue.SimpleQueue[Any]) -> None:
    while (job := jobs.get()) is not None:
        context, function, loop, future = job
        try:
            outcome = context.run(function), None
        except BaseException as error:  # handed to the waiter, whatever it is
            outcome = None, error
        try:
            loop.call_soon_threadsafe(_settle, future, outcome)
        except RuntimeError:
            return  # the loop has closed: nobody waits any more
        del job, future, outcome


def _settle(future: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    if not future.done():
        future.set_result(outcome)


async def call(function: Callable[[], Any], thread: CallThread, limit_s: float) -> Any:
    """Result of `function()`: awaited when it is async, else run in `thread`. All user code is called here.

    The time in which it waits for its turn in a crowded sandbox does not count.

    Raises:
        LimitExceeded: it did not end within `limit_s` seconds; what refuses to be cancelled is left behind.
        Raised: it raised something, whatever that is; only Finish and the environment's own errors
            (EnvError, ToolError) are raised as they are, also out of an exception group.
        asyncio.CancelledError: the caller was cancelled, rather than something inside of `function`.
    """
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(_make_task)
    began, waits = time.monotonic(), Waits()
    token = while_waiting.set(waits.one)
    task = asyncio.ensure_future(_outcome(function, thread))
    while_waiting.reset(token)
    try:
        while not task.done() and (left := limit_s + waits.seconds - (time.monotonic() - began)) > 0:
            await asyncio.wait({task}, timeout=max(left, 0.05))
        for _ in range(_TURNS):
            if not task.done():
                await asyncio.wait({task}, timeout=0.01)
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    if not task.done():
        await _cancel(task)
        raise LimitExceeded(f"no end within {limit_s:g} s")
    value, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
    if error is None:
        return value
    said = spoken(error)
    if said is None:
        raise Raised(error) from error
    if isinstance(said, EnvError):
        said.where = place(error)
    raise said


async def _outcome(function: Callable[[], Any], thread: CallThread) -> tuple[Any, BaseException | None]:
    """What the function returned or raised. A task must not end with SystemExit: that would end the loop."""
    _tasks.set(thread.tasks)
    try:
        if inspect.iscoroutinefunction(inspect.unwrap(getattr(function, "func", function))):
            return await function(), None
        outcome, error = await thread.run(function)
        return (await outcome if inspect.isawaitable(outcome) else outcome), error
    except BaseException as error:
        if ends_caller(error, cancelled=False):
            raise
        return None, error


def ends_caller(error: BaseException, *, cancelled: bool | None = None) -> bool:
    """Whether an exception is meant for the calling task, rather than a failure of what it called.

    It is when the task is being cancelled, when its coroutine is being closed, and on Ctrl-C.
    `cancelled`: whether the task counts as being cancelled; None asks it.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return (task is None or task.cancelling() > 0) if cancelled is None else cancelled
    if isinstance(error, GeneratorExit):
        return _current_task() is None
    return isinstance(error, KeyboardInterrupt) and not raised_by_statement(error)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop is running: the coroutine is being collected
        return None


_tasks: contextvars.ContextVar[weakref.WeakSet[asyncio.Task[Any]] | None] = contextvars.ContextVar(
    "tasks", default=None
)
"""Where tasks that are started now are kept: set inside of user code, and inherited by what it starts."""


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """The task factory: those of user code are kept, and cannot end the event loop."""
    tasks = _tasks.get()
    if tasks is None:
        return asyncio.Task(coroutine, loop=loop, **options)
    task: asyncio.Task[Any] = asyncio.Task(_Contained(coroutine), loop=loop, **options)
    tasks.add(task)
    return task


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine whose SystemExit is an ordinary exception: as a task's, it would end the event loop."""

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()

    def _step(self, step: Callable[..., Any], *values: Any) -> Any:
        try:
            return step(*values)
        except (SystemExit, KeyboardInterrupt) as error:
            if ends_caller(error):
                raise
            raise RuntimeError(f"a task ended with {error_text(error)}") from error


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_GRACE_S)
    # Fetched so that asyncio does not log "exception was never retrieved" for work nobody waits for any more.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
