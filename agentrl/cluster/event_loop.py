"""Runs a program's coroutine in an event loop that user code can neither fill nor keep open.

Users call `asyncio.to_thread` and start tasks and threads of their own. Some of these never end: they must
not keep agentrl's own work waiting for a free thread, nor the program from ending.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, TypeVar

from agentrl_envs.threads import THREADS

__all__ = ["DaemonThreads", "ProcessEnd", "on_interrupt", "run"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

LEAVE_LIMIT_S = 10.0
"""How long tasks that were left behind may take to end once they are cancelled."""
EXIT_LIMIT_S = 15.0
"""How long threads that were left behind may keep a process that has nothing more to do."""


_ASKED: dict[asyncio.AbstractEventLoop, Callable[[], None]] = {}
"""What the first Ctrl-C calls, by loop."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run(main)`, which does not wait for ever for what user code has left behind.

    Where an event loop is running already (a notebook), `main` runs in a thread with a loop of its own, and
    the caller is blocked until it ends. Ctrl-C reaches it there too.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(main)
    return _run_beside(main)


def _run(main: Coroutine[Any, Any, T], begun: Callable[[asyncio.AbstractEventLoop], None] | None = None) -> T:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_default_executor(DaemonThreads())
        if begun is not None:
            begun(loop)
        return runner.run(_alone_at_the_end(main))


def _run_beside(main: Coroutine[Any, Any, T]) -> T:
    """Run in a thread, and hand on to it every Ctrl-C that the caller gets meanwhile."""
    found: Future[T] = Future()
    loops: list[asyncio.AbstractEventLoop] = []

    def work() -> None:
        try:
            found.set_result(_run(main, loops.append))
        except asyncio.CancelledError:
            found.set_exception(KeyboardInterrupt())
        except BaseException as error:  # handed to the caller, whatever it is
            found.set_exception(error)

    def interrupt(*_: object) -> None:
        for loop in loops:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(_interrupt, loop)

    thread = threading.Thread(target=work, name="agentrl-loop", daemon=True)
    with _sigint(interrupt):
        thread.start()
        thread.join()
    return found.result()


def _interrupt(loop: asyncio.AbstractEventLoop) -> None:
    """The first Ctrl-C asks, where somebody wants to be asked; the next one cancels."""
    if (ask := _ASKED.pop(loop, None)) is not None:
        ask()
        return
    for task in asyncio.all_tasks(loop):
        task.cancel()


@contextlib.contextmanager
def _sigint(handler: Callable[..., None]) -> Iterator[None]:
    """Ctrl-C calls `handler`; only the main thread hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def on_interrupt(ask: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) calls `ask` in this loop, the second one ends at once what it runs."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        _ASKED[loop] = ask
        try:
            yield
        finally:
            _ASKED.pop(loop, None)
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def leave() -> None:
        for number, handler in before.items():
            if loop.remove_signal_handler(number):  # which leaves Python's own, not what was there before
                signal.signal(number, handler)

    def once() -> None:
        leave()
        ask()

    for number in before:
        loop.add_signal_handler(number, once)
    try:
        yield
    finally:
        leave()


async def _alone_at_the_end(main: Coroutine[Any, Any, T]) -> T:
    try:
        return await main
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=LEAVE_LIMIT_S)
        for task in left:
            logger.warning("left behind, because it swallows its cancellation: %r", task)
            asyncio._unregister_task(task)


class DaemonThreads(ThreadPoolExecutor):
    """An executor that is never full and never waited for: as many daemon threads as there are jobs.

    A pool of fixed size would stall everybody once a few jobs never return.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._ended = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a thread that has nothing to do, or in a new one."""
        if self._ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return THREADS.submit(partial(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; those under way are not waited for."""
        self._ended = True


class ProcessEnd:
    """Ends this process once its work is done, whatever threads were left behind.

    Python would wait for those that are no daemons, and end the others in the middle of what they do: inside
    of a library in C++ that aborts the process ("terminate called without an active exception"). Made before
    anything else is imported, so that what others do at exit comes before.
    """

    def __init__(self) -> None:
        self._code = 1
        self._exiting: threading.Thread | None = None
        atexit.register(self._leave)

    def begin(self, code: int) -> None:
        """Nothing more is to be done: end with this code, now or when `EXIT_LIMIT_S` has passed."""
        self._code = code
        self._exiting = threading.Thread(target=self._give_up, name="agentrl-exit", daemon=True)
        self._exiting.start()

    def _give_up(self) -> None:
        time.sleep(EXIT_LIMIT_S)
        names = ", ".join(thread.name for thread in self._others())
        sys.stderr.write(f"agentrl: leaving threads behind that do not end: {names:.300}\n")
        self._exit()

    def _leave(self) -> None:
        if self._others():
            self._exit()

    def _others(self) -> list[threading.Thread]:
        own = (threading.main_thread(), self._exiting)
        return [thread for thread in threading.enumerate() if thread not in own]

    def _exit(self) -> NoReturn:
        with contextlib.suppress(OSError, ValueError):
            logging.shutdown()
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(self._code)
