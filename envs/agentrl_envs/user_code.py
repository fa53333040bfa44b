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
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from agentrl_sandbox.crowd import while_waiting

from .errors import EnvError
from .raised import Raised, error_text, place, raised_by_statement, spoken
from .threads import THREADS, Thread

__all__ = ["CallThread", "LimitExceeded", "Waits", "call", "ends", "ends_caller"]

Outcome = tuple[Any, BaseException | None]
"""What a call returned, or what it raised."""

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

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """What is started inside tells this object of its waits."""
        token = while_waiting.set(self.one)
        try:
            yield
        finally:
            while_waiting.reset(token)

    @property
    def seconds(self) -> float:
        """Seconds waited so far."""
        return self._ended + (time.monotonic() - self._since if self._under_way else 0.0)


class CallThread:
    """Where the sync functions of one environment run, one after another.

    Args:
        name: of the thread while it runs them.
        tasks: what user code has started with `asyncio.create_task` and the like.
        keeps: asked after each call: whether the next one must run in the same thread, because the call left
            something behind, such as an sqlite connection, that may only be used by the thread that made it.
            Else any thread will do: an episode that waits for its model needs none.
    """

    def __init__(
        self,
        name: str,
        tasks: weakref.WeakSet[asyncio.Task[Any]] | None = None,
        keeps: Callable[[], bool] = lambda: False,
    ) -> None:
        self._name, self._keeps = name, keeps
        self.tasks = weakref.WeakSet[asyncio.Task[Any]]() if tasks is None else tasks
        self._thread: Thread | None = None

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Outcome]:
        """What `function()` returns or raises; cancelled, its thread is left behind."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        context.run(_tasks.set, self.tasks)
        future: asyncio.Future[Outcome] = loop.create_future()
        thread = self._thread = self._thread or THREADS.take(self)

        def settle(outcome: Outcome, kept: bool) -> None:
            if not kept and self._thread is thread:
                self._thread = None
            if not future.done():
                future.set_result(outcome)

        def job() -> tuple[bool, Callable[[], None]]:
            outcome = _run(context, function)
            kept = self._keeps()
            return kept, lambda: _in_loop(loop, settle, outcome, kept)

        thread.put(job, self._name)
        return future

    def stop(self) -> None:
        """Let others have the thread once it is done with what it has; the next call gets another."""
        if self._thread is not None:
            self._thread.leave(self)
            self._thread = None

    def end(self) -> None:
        """Stop, and cancel the tasks that user code has left behind."""
        self.stop()
        for task in list(self.tasks):
            task.cancel()


def _run(context: contextvars.Context, function: Callable[[], Any]) -> Outcome:
    try:
        return context.run(function), None
    except BaseException as error:  # handed to the waiter, whatever it is
        return None, error


def _in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
        loop.call_soon_threadsafe(function, *arguments)


FRESH_CALLS, FRESH_S = 32, 0.02
"""Calls that may have begun within the last so many seconds and have not ended."""


class Gate:
    """Lets a bounded number of calls of one event loop begin at once.

    A thread that waits for the interpreter's lock wakes every 5 ms. Thousands that begin together, as when
    ten thousand episodes start, spend more on that than on what they do. A call that takes its time blocks
    on something else, and is forgotten.
    """

    def __init__(self) -> None:
        self._fresh: dict[asyncio.Future[None], float] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self) -> asyncio.Future[None]:
        """Wait until a call may begin; what it returns is for `end`."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting and self._room():
            self._fresh[turn] = time.monotonic()
            return turn
        self._waiting.append(turn)
        self._admit()
        waiting = while_waiting.get()
        try:
            with waiting() if waiting else contextlib.nullcontext():
                await turn
        except asyncio.CancelledError:
            self.end(turn)
            raise
        return turn

    def end(self, turn: asyncio.Future[None]) -> None:
        """The call has ended."""
        self._fresh.pop(turn, None)
        if self._waiting:
            self._admit()

    def _room(self) -> bool:
        limit = time.monotonic() - FRESH_S
        while self._fresh and self._fresh[oldest := next(iter(self._fresh))] < limit:
            del self._fresh[oldest]
        return len(self._fresh) < FRESH_CALLS

    def _admit(self) -> None:
        while self._waiting and self._room():
            turn = self._waiting.popleft()
            if not turn.done():
                self._fresh[turn] = time.monotonic()
                turn.set_result(None)
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FRESH_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._admit()


_GATES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Gate] = weakref.WeakKeyDictionary()


def _gate() -> Gate:
    loop = asyncio.get_running_loop()
    gate = _GATES.get(loop)
    if gate is None:
        gate = _GATES[loop] = Gate()
    return gate


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
    if _is_async(function):
        value, error = await _ended(function, thread, limit_s)
    else:
        value, error = await _ended_in_thread(function, thread, limit_s)
        if error is None and inspect.isawaitable(value):
            value, error = await _ended(lambda: value, thread, limit_s)
    if error is None:
        return value
    said = spoken(error)
    if said is None:
        raise Raised(error) from error
    if isinstance(said, EnvError):
        said.where = place(error)
    raise said


def _is_async(function: Callable[[], Any]) -> bool:
    function = getattr(function, "func", function)
    return inspect.iscoroutinefunction(
        inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
    )


async def _ended_in_thread(function: Callable[[], Any], thread: CallThread, limit_s: float) -> Outcome:
    gate = _gate()
    turn = await gate.begin()
    waits = Waits()
    with waits.counted():
        future = thread.start(function)
    try:
        if await ends(future, limit_s, waits):
            return future.result()
        thread.stop()
        raise LimitExceeded(f"no end within {limit_s:g} s")
    except asyncio.CancelledError:
        thread.stop()
        raise
    finally:
        gate.end(turn)
        future.cancel()


async def _ended(begin: Callable[[], Awaitable[Any]], thread: CallThread, limit_s: float) -> Outcome:
    waits = Waits()
    with waits.counted():
        task = asyncio.ensure_future(_outcome(begin, thread))
    try:
        ended = await ends(task, limit_s, waits)
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    if not ended:
        await _cancel(task)
        raise LimitExceeded(f"no end within {limit_s:g} s")
    return (None, asyncio.CancelledError()) if task.cancelled() else task.result()


async def _outcome(begin: Callable[[], Awaitable[Any]], thread: CallThread) -> Outcome:
    """What it returned or raised. A task must not end with SystemExit: that would end the loop."""
    _tasks.set(thread.tasks)
    try:
        return await begin(), None
    except BaseException as error:
        if ends_caller(error, cancelled=False):
            raise
        return None, error


_LOOKS = 10  # at a call within its limit; a loop that comes late to one cannot use up more than this share


async def ends(future: asyncio.Future[Any], limit_s: float, waits: Waits | None = None) -> bool:
    """Whether it ends within so many seconds. Cancelled, it leaves the future as it is.

    What counts against the limit is its own time: neither waits for a turn in a crowded sandbox, nor the
    time for which an event loop that is busy with thousands of others comes late.
    """
    left, share = limit_s, limit_s / _LOOKS
    while not future.done() and left > 1e-6:
        began, waited = time.monotonic(), waits.seconds if waits else 0.0
        await _wait(future, min(left, share))
        took = time.monotonic() - began - ((waits.seconds if waits else 0.0) - waited)
        left -= min(max(took, 0.0), share)
    return future.done()


async def _wait(future: asyncio.Future[Any], limit_s: float) -> None:
    """`asyncio.wait` of one future, at a fifth of its cost."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(*_: Any) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(limit_s, wake)
    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(wake)


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
