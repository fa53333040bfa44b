"""Knows for every wait who is waited for and since when; past its limit, says so and stops waiting.

Two guards: `Watchdog.wait` bounds one await and raises `StallError` with the owner's name; a thread
notices when the event loop itself does not turn, which no await can. Both write the stacks of all
threads and tasks to `logs/stalls.txt` first. It knows nothing of what is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agentrl.errors import StallError

T = TypeVar("T")
logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long something that was waited for too long may take to end once it is cancelled."""

POLL_S = 1.0
"""Longest time between two looks at whether something moves."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait that is under way."""

    owner: str
    """Who is waited for, as a person would name it."""
    since: float
    """`time.monotonic()` at its start."""
    limit_s: float


class Watchdog:
    """The waits of one run.

    Args:
        folder: `stalls.txt` is written there; None writes nothing.
        loop_limit_s: longest time the event loop may not turn before its stacks are written.
    """

    def __init__(self, folder: Path | None = None, *, loop_limit_s: float = 30.0) -> None:
        self._folder = folder
        self._loop_limit_s = loop_limit_s
        self._waits: dict[int, Wait] = {}
        self._number = 0
        self._beat = time.monotonic()
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.loop_stalls = 0

    def waits(self) -> list[Wait]:
        """The waits under way, longest first."""
        return sorted(self._waits.values(), key=lambda wait: wait.since)

    def describe(self) -> str:
        """Who is waited for and since when, one line each."""
        now = time.monotonic()
        return "\n".join(
            f"{wait.owner}: {now - wait.since:.1f} s of {wait.limit_s:.0f} s" for wait in self.waits()
        )

    @contextlib.contextmanager
    def watching(self, owner: str, limit_s: float) -> Iterator[None]:
        """Register a wait without bounding it (the caller does)."""
        self._number += 1
        number = self._number
        self._waits[number] = Wait(owner, time.monotonic(), limit_s)
        try:
            yield
        finally:
            del self._waits[number]

    async def wait(
        self,
        awaitable: Awaitable[T],
        owner: str,
        limit_s: float,
        remedy: str | Callable[[], str] = "",
        *,
        progress: Callable[[], object] | None = None,
    ) -> T:
        """Await with a limit, also something that does not end when it is cancelled.

        Args:
            awaitable: what is waited for.
            owner: who, as a person would name it.
            limit_s: longest wait.
            remedy: what the user can do about it; a function is asked when the limit has passed.
            progress: changes whenever the owner got on; the limit then counts from its last change.

        Raises:
            StallError: the limit passed; the stacks were written, then the awaitable was cancelled.
        """
        work = asyncio.ensure_future(awaitable)
        try:
            with self.watching(owner, limit_s):
                if await _ends(work, limit_s, progress):
                    return work.result()
                where = self.write_stacks(f"waited {limit_s:.0f} s for {owner}")
        except BaseException:
            await _cancel(work, owner)
            raise
        await _cancel(work, owner)
        if not isinstance(remedy, str):
            remedy = remedy()
        hint = f"stacks are in {where}" if where else ""
        raise StallError(owner, limit_s, "; ".join(filter(None, (remedy, hint))))

    def start(self) -> None:
        """Watch the running event loop from a thread."""
        self._loop = asyncio.get_running_loop()
        self._beat = time.monotonic()
        self._stopped.clear()
        self._thread = threading.Thread(target=self._watch_loop, name="agentrl-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; idempotent."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def _turn(self) -> None:
        self._beat = time.monotonic()

    def _watch_loop(self) -> None:
        reported = False
        while not self._stopped.wait(min(1.0, self._loop_limit_s / 4)):
            loop = self._loop
            if loop is None or loop.is_closed():
                return
            with contextlib.suppress(RuntimeError):  # closed between the two lines
                loop.call_soon_threadsafe(self._turn)
            late = time.monotonic() - self._beat
            if late < self._loop_limit_s:
                reported = False
            elif not reported:
                reported = True
                self.loop_stalls += 1
                self.write_stacks(f"the event loop has not turned for {late:.0f} s", tasks=False)

    def write_stacks(self, reason: str, *, tasks: bool = True) -> Path | None:
        """Append the reason, the waits and all stacks to `stalls.txt`; returns its path."""
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "stalls.txt"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {reason}\n{self.describe()}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            if tasks:
                file.write(_task_stacks())
        return path


async def _ends(work: asyncio.Future[Any], limit_s: float, progress: Callable[[], object] | None) -> bool:
    """Whether it ends within the limit, counted from the last change of `progress`."""
    seen, began = progress and progress(), time.monotonic()
    while not work.done():
        left = began + limit_s - time.monotonic()
        if left <= 0.0:
            return False
        await asyncio.wait((work,), timeout=left if progress is None else min(left, POLL_S))
        if progress is not None and (now := progress()) != seen:
            seen, began = now, time.monotonic()
    return True


async def _cancel(work: asyncio.Future[Any], owner: str) -> None:
    """Cancel it, and leave it behind where it will not end."""
    work.cancel()
    await asyncio.wait((work,), timeout=GRACE_S)
    if not work.done():
        logger.error("%s did not end within %.0f s of being cancelled and is left behind", owner, GRACE_S)
    elif not work.cancelled():
        work.exception()  # seen: it is not what the caller needs to know


def _task_stacks() -> str:
    text = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(limit=8, file=text)
    return text.getvalue()
