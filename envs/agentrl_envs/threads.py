"""Daemon threads that everybody shares: as many as there are jobs at once; none is waited for at exit.

There is no bound on how many: with one, a few jobs that never return would stall everybody. Knows nothing of
what the jobs do.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

__all__ = ["THREADS", "Thread", "Threads", "run_apart"]

IDLE_S = 5.0
"""A thread that had nothing to do for so long ends."""

T = TypeVar("T")
Job = Callable[[], tuple[bool, Callable[[], None]]]
"""Returns whether the thread stays with its keeper, and what to call once that is settled."""


class Thread:
    """A thread, and who has it to himself at the moment."""

    def __init__(self, pool: Threads, keeper: object) -> None:
        self.keeper: object | None = keeper
        self._jobs: queue.SimpleQueue[tuple[Job, object]] = queue.SimpleQueue()
        self._pool = pool
        self._thread = threading.Thread(target=self._serve, name="agentrl-thread", daemon=True)
        self._thread.start()

    def put(self, job: Job, name: str) -> None:
        """Run a job of the keeper; `name` says in stacks whose it is."""
        self._thread.name = name
        self._jobs.put((job, self.keeper))

    def leave(self, keeper: object) -> None:
        """`keeper` needs the thread no longer, once it is done with what it has."""
        self._jobs.put((lambda: (False, lambda: None), keeper))

    def _serve(self) -> None:
        while True:
            try:
                job, keeper = self._jobs.get(timeout=IDLE_S if self.keeper is None else None)
            except queue.Empty:
                if self._pool.retire(self):
                    return
                continue
            kept, settle = job()
            if not kept:
                self._pool.give_back(self, keeper)
            settle()
            del job, keeper, settle


class Threads:
    """Threads that have nothing to do, the one that worked last first."""

    def __init__(self) -> None:
        self._free: list[Thread] = []
        self._guard = threading.Lock()

    def take(self, keeper: object) -> Thread:
        """A thread for `keeper` alone, until a job of his says otherwise, or he leaves it."""
        with self._guard:
            if self._free:
                thread = self._free.pop()
                thread.keeper = keeper
                return thread
        return Thread(self, keeper)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run `function()` in a thread that has nothing to do, or in a new one."""
        future: Future[T] = Future()

        def job() -> tuple[bool, Callable[[], None]]:
            if not future.set_running_or_notify_cancel():
                return False, lambda: None
            try:
                settle = partial(future.set_result, function())
            except BaseException as error:  # handed to the waiter, whatever it is
                settle = partial(future.set_exception, error)
            return False, settle

        self.take(future).put(job, "agentrl-thread")
        return future

    def give_back(self, thread: Thread, keeper: object) -> None:
        """Let others have it, unless it is no longer the keeper's."""
        with self._guard:
            if thread.keeper is keeper:
                thread.keeper = None
                self._free.append(thread)

    def retire(self, thread: Thread) -> bool:
        """Whether a thread with nothing to do may end: nobody has taken it meanwhile."""
        with self._guard:
            if thread.keeper is not None:
                return False
            self._free.remove(thread)
            return True

    def forget(self) -> None:
        """A child of `os.fork` has none of its parent's threads."""
        self._free, self._guard = [], threading.Lock()


THREADS = Threads()
os.register_at_fork(after_in_child=THREADS.forget)


def run_apart(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, from a function that may itself be called inside of an event loop."""
    return THREADS.submit(partial(asyncio.run, coroutine)).result()
