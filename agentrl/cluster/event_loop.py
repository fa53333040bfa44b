"""Runs a program's coroutine in an event loop that user code can neither fill nor keep open.

Users call `asyncio.to_thread` and start tasks and threads of their own. Some of these never end: they must
not keep agentrl's own work waiting for a free thread, nor the program from ending.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["DaemonThreads", "end_process", "run"]

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
        self._free: list[queue.SimpleQueue[Callable[[], None] | None]] = []
        self._guard = threading.Lock()
        self._ended = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a thread that has nothing to do, or in a new one."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # handed to the waiter, whatever it is
                future.set_exception(error)

        with self._guard:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            jobs = self._free.pop() if self._free else None
        if jobs is None:
            jobs = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(jobs,), name="agentrl-thread", daemon=True).start()
        jobs.put(job)
        return future

    def _serve(self, jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (job := jobs.get()) is not None:
            job()
            del job
            with self._guard:
                if self._ended:
                    return
                self._free.append(jobs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let idle threads end; those at work are not waited for."""
        with self._guard:
            self._ended = True
            free, self._free = self._free, []
        for jobs in free:
            jobs.put(None)


def end_process(code: int) -> None:
    """End this process soon, whatever threads user code has left behind: Python would wait for them."""
    threading.Thread(target=_end, args=(code,), name="agentrl-exit", daemon=True).start()


def _end(code: int) -> None:
    time.sleep(EXIT_LIMIT_S)
    own = (threading.main_thread(), threading.current_thread())
    names = ", ".join(thread.name for thread in threading.enumerate() if thread not in own)
    sys.stderr.write(f"agentrl: leaving threads behind that do not end: {names:.300}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)
