"""The bounded queue in front of the programs of a sandbox server.

Knows how many programs may run at once and how many may wait; knows nothing of HTTP or sessions. Time spent
here is measured apart and never counts against a program.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Draining(Exception):
    """The server is shutting down and takes nothing new."""


class QueueFull(Exception):
    """No place is left to wait in; `retry_after_s` is when one may be expected."""

    def __init__(self, what: str, retry_after_s: int) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class RunQueue:
    """Lets `running` programs run and `waiting` more wait, first come first served.

    `wait_limit_s`: longest wait for a turn; past it the caller is told to come back, as when the queue is
    full.
    """

    def __init__(self, *, running: int, waiting: int, wait_limit_s: float) -> None:
        if running < 1 or waiting < 0 or wait_limit_s <= 0:
            raise ValueError("a run queue needs running >= 1, waiting >= 0 and wait_limit_s > 0")
        self.running_limit = running
        self.waiting_limit = waiting
        self.wait_limit_s = wait_limit_s
        self.waiting = 0
        self.running = 0
        self._turns = asyncio.Semaphore(running)
        self._mean_run_s = 0.1

    def retry_after_s(self) -> int:
        """Whole seconds until the present queue has probably gone by: at least 1, at most 30."""
        expected = self._mean_run_s * (self.waiting + 1) / self.running_limit
        return max(1, min(30, math.ceil(expected)))

    @asynccontextmanager
    async def turn(self, session: asyncio.Lock | None = None) -> AsyncIterator[float]:
        """Waits for a turn and holds it; gives the seconds waited. Raises `QueueFull`, at once when full.

        `session`: a lock that must be free too. Who waits for it waits here: one session's calls fill the
        queue as any others do, and take no turn from them meanwhile.
        """
        session = session or asyncio.Lock()
        if (self._turns.locked() or session.locked()) and self.waiting >= self.waiting_limit:
            raise QueueFull(
                f"the queue is full: {self.running} programs run and {self.waiting} wait",
                self.retry_after_s(),
            )
        queued = time.monotonic()
        self.waiting += 1
        try:
            async with asyncio.timeout(self.wait_limit_s):
                await session.acquire()
                try:
                    await self._turns.acquire()
                except BaseException:
                    session.release()
                    raise
        except TimeoutError as error:
            raise QueueFull(f"no turn came within {self.wait_limit_s:g} s", self.retry_after_s()) from error
        finally:
            self.waiting -= 1
        started = time.monotonic()
        self.running += 1
        try:
            yield started - queued
        finally:
            self.running -= 1
            self._turns.release()
            session.release()
            self._mean_run_s += 0.1 * (time.monotonic() - started - self._mean_run_s)
