"""Sessions whose runs take turns at one interpreter on this side: what local and docker sessions share."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from .crowd import Crowd, Turn
from .errors import SessionClosed
from .interface import Session
from .limits import Limits
from .result import Result, Status


class SerialSession(Session):
    """A session with one interpreter, which a subclass starts, talks to and drops."""

    def __init__(self, limits: Limits, *, stateless: bool, seed: int | None, crowd: Crowd) -> None:
        self._limits, self._stateless, self._seed, self._crowd = limits, stateless, seed, crowd
        self._one_at_a_time = asyncio.Lock()
        self._turn: Turn | None = None
        self._closed = False

    @abstractmethod
    async def begin(self) -> None:
        """Start the interpreter now, so that errors show at `open`. Raises what `Sandbox.open` raises."""

    @abstractmethod
    def _leave(self) -> None:
        """Tell the sandbox that this session is none of its own any more."""

    @abstractmethod
    def _hang_up(self) -> None:
        """End a run in progress at once."""

    @abstractmethod
    async def _drop(self) -> None:
        """Give the interpreter up; the next run has a fresh one."""

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the session was closed")

    def _too_long(self, source: bytes, stdin: bytes) -> Result | None:
        """The result of a program that is not run for its length."""
        limit = self._limits.source_bytes
        if max(len(source), len(stdin)) <= limit:
            return None
        what = "source code" if len(source) > limit else "stdin"
        return Result(Status.ERROR, error=f"The {what} is longer than {limit} bytes.")

    def _overdue(self, time_s: float, wall_s: float) -> Result:
        """The program kept its limits from being looked at, or waits where nothing can wait so long."""
        reason = f"The time limit of {time_s:g} s was reached; the program was killed after {wall_s:.1f} s."
        return lost(Status.TIMEOUT, reason, wall_s)

    def _memory_full(self, wall_s: float) -> Result:
        """The program was killed for its memory."""
        reason = f"The memory limit of {self._limits.memory_mb} MiB was reached and the program was killed."
        return lost(Status.OUT_OF_MEMORY, reason, wall_s)

    async def close(self) -> None:
        """See `Session.close`; a run in progress ends as an infrastructure failure."""
        if self._closed:
            return
        self._closed = True
        self._leave()
        if self._turn is not None:
            self._turn.give_up(SessionClosed("the session was closed"))
        self._hang_up()
        async with self._one_at_a_time:
            await self._drop()


def encoded(text: str) -> bytes:
    """Text of a caller, lone surrogates included, as a supervisor reads it."""
    return text.encode("utf-8", "surrogatepass")


def lost(status: Status, reason: str, wall_s: float, signal: int | None = None) -> Result:
    """The result of a run that took the session with it."""
    return Result(status, error=reason, wall_s=wall_s, signal=signal, session_alive=False)
