"""Event loops in threads of their own, each with an object that belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LoopThread", "LoopThreads"]


@dataclass(slots=True, eq=False)
class LoopThread:
    """One loop; clients, locks and semaphores of `made` are used in it alone."""

    made: Any
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    users: int = 0

    async def run(self, coroutine: Any) -> Any:
        """Wait for a coroutine that runs there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))


@dataclass(slots=True)
class LoopThreads:
    """As many as are asked for, made when the first of their users comes.

    What blocks one of them holds up its own users alone; who comes then takes another.
    """

    make: Callable[[], Any]
    _threads: list[LoopThread] = field(default_factory=list[LoopThread])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def taken(self, most: int) -> Iterator[LoopThread]:
        """The one of `most` that has the fewest users."""
        with self._lock:
            chosen = self._chosen(most)
            chosen.users += 1
        try:
            yield chosen
        finally:
            with self._lock:
                chosen.users -= 1

    def _chosen(self, most: int) -> LoopThread:
        free = min(self._threads[:most], key=lambda one: one.users, default=None)
        if free is not None and (not free.users or len(self._threads) >= most):
            return free
        added = LoopThread(self.make())
        threading.Thread(target=added.loop.run_forever, name="environment-loop", daemon=True).start()
        self._threads.append(added)
        return added
