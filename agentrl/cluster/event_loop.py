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
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, TypeVar

from agentrl_envs.threads import THREADS

__all__ = ["DaemonThreads", "ProcessEnd", "run"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

LEAVE_LIMIT_S = 10.0
"""How long tasks that were left behind may take to end once they are cancelled."""
EXIT_LIMIT_S = 15.0
"""How long threads that were left behind may keep a process that has nothing more to do."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run(main)`, which does not wait for ever for what user code has left behind."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(DaemonThreads())
        return runner.run(_alone_at_the_end(main))


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
            asyncio._unregister_task(task)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


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
        future: Future[T] = Future()

        def job() -> tuple[bool, Callable[[], None]]:
            if not future.set_running_or_notify_cancel():
                return False, lambda: None
            try:
                settle = partial(future.set_result, fn(*args, **kwargs))
            except BaseException as error:  # handed to the waiter, whatever it is
                settle = partial(future.set_exception, error)
            return False, settle

        THREADS.take(future).put(job, "agentrl-thread")
        return future

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
