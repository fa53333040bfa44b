"""What a server of one process may use: memory and CPU time of it and of all that it starts.

By a control group of the kernel where this process may make one: memory is exact then. Elsewhere by a look
at /proc twice a second, at the processes of the server's session. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import weakref
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl_sandbox.local.cgroups import Group, Groups

__all__ = ["Allowance", "Usage", "watched"]

_LOOK_S = 0.5
_PROCESSES = 1024
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a server may use; 0 sets no limit."""

    memory_mb: int = 0
    cpu_s: float = 0.0


class Usage:
    """The limits of one server, and whether it was over one of them."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.over = ""
        """Which limit, in words; empty while it keeps them."""
        self.pid = 0
        groups = _groups() if allowance.memory_mb or allowance.cpu_s else None
        memory = (allowance.memory_mb << 20) or 1 << 50
        self._group: Group | None = None if groups is None else groups.take(memory, _PROCESSES)
        self._clock = -1 if self._group is None else self._group.open_usage()
        self._at_first_s = _seconds(self._clock)

    @property
    def exact(self) -> bool:
        """Whether the kernel holds the memory."""
        return self._group is not None

    def command(self, command: Iterable[str]) -> list[str]:
        """The command behind a shell that joins the control group, and sets a limit on CPU time."""
        script = (
            [f"echo 0 > '{path}/cgroup.procs'" for path in self._group.directories] if self._group else []
        )
        if self.allowance.cpu_s:
            # Of each process, by the kernel: where nobody looks any more.
            script.append(f"ulimit -t {round(self.allowance.cpu_s) + 5}")
        return ["/bin/sh", "-c", "; ".join([*script, 'exec "$@"']), "sh", *command]

    def look_now(self) -> str:
        """Which limit it is over, in words; empty while it keeps them."""
        return self.over or self.look({} if self.exact else _sessions())

    def look(self, sessions: dict[int, tuple[float, int]]) -> str:
        """Which limit it is over, in words, killing it; `sessions` are CPU seconds and bytes of each."""
        seconds, size = sessions.get(self.pid, (0.0, 0))
        if self._clock >= 0:
            seconds = _seconds(self._clock) - self._at_first_s
        over_memory = self._group.out_of_memory() if self._group else size > self.allowance.memory_mb << 20
        if self.allowance.memory_mb and over_memory:
            self.over = f"it used more than its memory_mb = {self.allowance.memory_mb}"
        elif self.allowance.cpu_s and seconds > self.allowance.cpu_s:
            self.over = f"it used more than its cpu_s = {self.allowance.cpu_s:g}"
        if self.over and self.pid:
            self._kill()
        return self.over

    def _kill(self) -> None:
        for pid in self._group.pids_inside() if self._group else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Give its control group back; it has ended."""
        self.pid = 0
        if self._clock >= 0:
            os.close(self._clock)
            self._clock = -1
        groups, group, self._group = _groups(), self._group, None
        if groups is not None and group is not None:
            groups.give_back(group)


@contextlib.asynccontextmanager
async def watched(usage: Usage) -> AsyncIterator[None]:
    """Look at a server while the context is open."""
    loop = asyncio.get_running_loop()
    watch = _WATCHES.get(loop)
    if watch is None:
        watch = _WATCHES[loop] = _Watch()
    watch.add(usage)
    try:
        yield
    finally:
        watch.remove(usage)


class _Watch:
    """One look for all servers of an event loop, twice a second while there are any."""

    def __init__(self) -> None:
        self._usages: set[Usage] = set()
        self._next: asyncio.TimerHandle | None = None

    def add(self, usage: Usage) -> None:
        """Look at one more."""
        if usage.allowance.memory_mb or usage.allowance.cpu_s:
            self._usages.add(usage)
            if self._next is None:
                self._next = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def remove(self, usage: Usage) -> None:
        """It has ended."""
        self._usages.discard(usage)
        if not self._usages and self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        sessions = {} if all(one.exact for one in self._usages) else _sessions()
        for usage in list(self._usages):
            usage.look(sessions)
        self._next = asyncio.get_running_loop().call_later(_LOOK_S, self._look)


_WATCHES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = weakref.WeakKeyDictionary()


@lru_cache(maxsize=1)
def _groups() -> Groups | None:
    """The control groups of this process; None where it may make none."""
    from agentrl_sandbox.local.cgroups import Groups

    groups, _ = Groups.find()
    if groups is not None:
        atexit.register(groups.close)
    return groups


def _seconds(clock: int) -> float:
    """CPU seconds by the account of a control group; version 1 has nanoseconds, version 2 lines."""
    if clock < 0:
        return 0.0
    text = os.pread(clock, 256, 0)
    return int(text) / 1e9 if text[:1].isdigit() else int(text.split(None, 2)[1]) / 1e6


def _sessions() -> dict[int, tuple[float, int]]:
    """CPU seconds and resident bytes of each session's processes; with the seconds of dead children."""
    found: dict[int, tuple[float, int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            session, ticks, pages = int(fields[3]), sum(map(int, fields[11:15])), int(fields[21])
            seconds, size = found.get(session, (0.0, 0))
            found[session] = seconds + ticks / _TICK, size + pages * _PAGE
    return found
