"""How many programs of a sandbox run at once; the rest wait in the order in which they came.

A machine that runs too many at once finishes none of them: every one waits for a core, and looks starved or
out of time. Waiting here is before a program begins, so no clock of it runs. Usable from several event loops
and threads. Knows nothing of programs or sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType

from .errors import PoolExhausted, SandboxConfigError

PER_CORE = 8
WAIT_LIMIT_S = 3600.0

while_waiting: ContextVar[Callable[[], contextlib.AbstractContextManager[None]] | None] = ContextVar(
    "while_waiting", default=None
)
"""Entered while a run waits for its turn: for a caller whose own clock should stand still meanwhile."""


class Crowd:
    """Lets `places` programs run at once; None for eight per core.

    Raises:
        SandboxConfigError: `places` is no positive number.
    """

    def __init__(self, places: int | None = None, wait_limit_s: float = WAIT_LIMIT_S) -> None:
        if places is not None and (isinstance(places, bool) or not isinstance(places, int) or places < 1):
            raise SandboxConfigError(f"max_running must be a whole number of at least 1, not {places!r}")
        self.places = places or PER_CORE * (os.cpu_count() or 1)
        self.running = 0
        self.wait_limit_s = wait_limit_s
        self._waiting: deque[Turn] = deque()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Programs that wait for their turn."""
        return len(self._waiting)

    def turn(self) -> Turn:
        """`async with crowd.turn():` holds a place; see `Turn`."""
        return Turn(self)

    def take(self, turn: Turn) -> bool:
        """True when there was a place; else the turn is in the queue."""
        with self._lock:
            if self.running < self.places and not self._waiting:
                self.running += 1
                return True
            self._waiting.append(turn)
            return False

    def withdraw(self, turn: Turn) -> None:
        """Leave the queue; a place that was given at the same moment goes on to the next one."""
        with self._lock:
            given = turn not in self._waiting
            if not given:
                self._waiting.remove(turn)
        if given:
            self.leave(turn.loop)

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give a place to the next one who waits. `loop`: the event loop that runs this."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.loop is loop:
                    turn.come()
                    return
                with contextlib.suppress(RuntimeError):  # its loop is closed, and nobody waits in it
                    turn.loop.call_soon_threadsafe(turn.come)
                    return
            self.running -= 1


class Turn:
    """One place, waited for at the head of `async with`.

    Raises:
        PoolExhausted: none came free in the crowd's `wait_limit_s`.
    """

    def __init__(self, crowd: Crowd) -> None:
        self.loop = asyncio.get_running_loop()
        self._crowd = crowd
        self._coming: asyncio.Future[None] | None = None  # while one waits

    def come(self) -> None:
        """The place is there."""
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)

    def give_up(self, error: Exception) -> None:
        """Raise `error` in who waits, if somebody does."""
        if self._coming is not None and not self._coming.done():
            self._coming.set_exception(error)

    async def __aenter__(self) -> None:
        if self._crowd.take(self):
            return
        self._coming = self.loop.create_future()  # before `come` can be called, in this loop
        began, pause = time.monotonic(), while_waiting.get()
        try:
            with pause() if pause else contextlib.nullcontext():
                async with asyncio.timeout(self._crowd.wait_limit_s):
                    await self._coming
        except BaseException as error:
            self._crowd.withdraw(self)
            if not isinstance(error, TimeoutError):
                raise
            raise PoolExhausted(
                f"no turn came in {time.monotonic() - began:.0f} s: {self._crowd.running} programs run "
                f"(max_running = {self._crowd.places}) and {self._crowd.waiting} more wait"
            ) from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crowd.leave(self.loop)
