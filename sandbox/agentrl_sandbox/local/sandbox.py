"""The local backend: sessions forked from warm interpreters into jails of this machine's kernel.

Ties together zygotes, control groups and the probe that finds the strongest level. Knows nothing of programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..crowd import Crowd
from ..errors import PoolExhausted, SandboxClosed, SandboxUnavailable, SessionStartFailed
from ..interface import Sandbox, Session
from ..level import Level
from ..limits import Limits
from ..wire import Lost
from .cgroups import Group, Groups
from .probe import Found, Wish, find_level
from .rooms import Rooms, sweep
from .session import Interpreter, LocalSession
from .zygote_handle import SESSION_UIDS, Zygote, ZygoteSettings

_ROTATE_AFTER = 10_000


class LocalSandbox(Sandbox):
    """Sessions as jailed processes of this machine. Usable from several event loops and threads.

    Args:
        limits: defaults for `open`.
        min_level: refuse to start below it; default: namespaced, or lower where `max_level` or `allow_unsafe`
            say so.
        allow_unsafe: run without isolation where nothing better can be had.
        python: an interpreter (3.11 or newer) for the programs; default: the one that runs this process.
        libraries: packages that programs may import, installed once into a directory of the sandbox's own.
        library_path: a directory that has them already (instead of installing; never the trainer's).
        zygotes: warm interpreters; default: one per core.
        max_sessions: live sessions at most; further `open` calls wait.
        max_running: programs that run at once; further `run` calls wait for their turn, which no clock of
            theirs counts. Default: eight per core.
        open_timeout_s: longest wait for a session.
        max_level: use no stronger level (for tests and comparisons).
        control_groups: use control groups where this process may write to them.
        own_network: a network namespace for each session, not an empty one shared by a zygote's sessions.
        uid: user that sessions run as when this process is root.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        min_level: Level | None = None,
        allow_unsafe: bool = False,
        python: str | None = None,
        libraries: Sequence[str] = (),
        library_path: str | None = None,
        zygotes: int | None = None,
        max_sessions: int | None = None,
        max_running: int | None = None,
        open_timeout_s: float = 30.0,
        max_level: Level | int | str | None = None,
        control_groups: bool = True,
        own_network: bool = True,
        uid: int = 65534,
    ):
        self._limits = limits or Limits()
        self._max_level = Level.parse(Level.CONTAINED if max_level is None else max_level) or Level.UNSAFE
        lowest = Level.UNSAFE if allow_unsafe else min(Level.NAMESPACED, self._max_level)
        self._min_level = Level.parse(lowest if min_level is None else min_level) or Level.UNSAFE
        self._allow_unsafe = allow_unsafe
        self._python, self._libraries, self._library_path = python, tuple(libraries), library_path
        self._wanted_zygotes = zygotes or os.cpu_count() or 1
        self._max_sessions, self._open_timeout_s = max_sessions, open_timeout_s
        self._control_groups, self._own_network, self._uid = control_groups, own_network, uid
        self._crowd = Crowd(max_running)
        self._zygotes: list[Zygote | None] = []
        self._retired: list[Zygote] = []
        self._groups: Groups | None = None
        self._settings: ZygoteSettings | None = None
        self._reasons: list[str] = []
        self._live: set[LocalSession] = set()
        self._interpreters = 0
        self._next = 0
        self._rooms = Rooms()
        # By chance, so that sandboxes of other processes have others; little hangs on it.
        self._uids = itertools.count(secrets.randbelow(SESSION_UIDS[1]))
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._closed = False

    # ------------------------------------------------------------------------------------------- start

    async def start(self) -> None:
        """See `Sandbox.start`."""
        if self._closed:
            raise SandboxClosed("the sandbox was closed")
        if self._settings is None:
            await asyncio.to_thread(self._start_once)

    def _start_once(self) -> None:
        with self._starting:
            if self._settings is not None or self._closed:
                return
            if sys.platform != "linux":
                raise SandboxUnavailable("the local sandbox needs Linux; use the docker or remote backend")
            _raise_descriptor_limit()
            sweep()
            found = find_level(
                Wish(
                    open_session=self._open_on_trial,
                    python=self._python,
                    libraries=self._libraries,
                    library_path=self._library_path,
                    max_level=self._max_level,
                    min_level=self._min_level,
                    allow_unsafe=self._allow_unsafe,
                    control_groups=self._control_groups,
                    own_network=self._own_network,
                    uid=self._uid,
                )
            )
            self._groups, self.level, self._reasons = found.groups, found.level, found.reasons
            self._zygotes = [found.zygote, *[None] * (self._wanted_zygotes - 1)]
            self._settings = found.settings

    @classmethod
    async def _open_on_trial(cls, found: Found) -> Session:
        """A session over one zygote that runs already: the probe tries its level with it."""
        self = cls(zygotes=1)
        self._settings = found.settings
        self._zygotes = [found.zygote]
        self._groups, self.level = found.groups, found.level
        return await self.open()

    def _zygote(self) -> Zygote:
        """The next live zygote, started or replaced where needed. Blocks; call it in a thread."""
        assert self._settings is not None
        with self._lock:
            index = self._next = (self._next + 1) % len(self._zygotes)
            zygote = self._zygotes[index]
            if zygote is not None and zygote.alive and zygote.forks < _ROTATE_AFTER:
                return zygote
            if zygote is not None:
                self._retire(zygote)
            zygote = self._zygotes[index] = Zygote.start(self._settings, self._open_timeout_s)
            return zygote

    def _retire(self, zygote: Zygote) -> None:
        """A dead one is buried; an old one goes with the last of its sessions."""
        if zygote.alive and zygote.live > 0:
            self._retired.append(zygote)
        else:
            zygote.close()

    def _ready_zygote(self) -> Zygote | None:
        with self._lock:
            index = (self._next + 1) % len(self._zygotes)
            zygote = self._zygotes[index]
            if zygote is None or not zygote.alive or zygote.forks >= _ROTATE_AFTER:
                return None
            self._next = index
            return zygote

    # -------------------------------------------------------------------------------------------- open

    async def open(
        self, limits: Limits | None = None, *, stateless: bool = False, seed: int | None = None
    ) -> Session:
        """See `Sandbox.open`."""
        await self.start()
        session = LocalSession(
            self._start_interpreter,
            self._release,
            self._live.discard,
            limits or self._limits,
            stateless=stateless,
            seed=seed,
            crowd=self._crowd,
        )
        await session.begin()
        self._live.add(session)
        return session

    async def _start_interpreter(self, limits: Limits, seed: int | None) -> Interpreter:
        """Fork a session's process. Raises SandboxError."""
        if self._closed:
            raise SandboxClosed("the sandbox was closed")
        end = asyncio.get_running_loop().time() + self._open_timeout_s
        await self._admit(end)
        last = "no attempt"
        try:
            for _ in range(3):
                try:
                    left = max(0.1, end - asyncio.get_running_loop().time())
                    return await asyncio.wait_for(self._fork(limits, seed), left)
                except TimeoutError:
                    last = f"the zygote did not bring up a session within {self._open_timeout_s:g} s"
                    break
                except (Lost, OSError) as error:
                    last = str(error)
            raise SessionStartFailed(f"no session could be started: {last}")
        except BaseException:
            self._interpreters -= 1
            raise

    async def _admit(self, end: float) -> None:
        # Several event loops may wait here, which no asyncio.Event could serve.
        while self._max_sessions is not None and self._interpreters >= self._max_sessions:
            if asyncio.get_running_loop().time() >= end:
                raise PoolExhausted(
                    f"all {self._max_sessions} sessions were taken for {self._open_timeout_s:g} s; "
                    "close sessions or raise max_sessions"
                )
            await asyncio.sleep(0.01)
        self._interpreters += 1

    async def _fork(self, limits: Limits, seed: int | None) -> Interpreter:
        assert self._settings is not None
        zygote = self._ready_zygote() or await asyncio.to_thread(self._zygote)
        group = self._take_group(limits)
        interpreter = Interpreter(limits, group, self._settings.namespaces)
        interpreter.zygote = zygote
        zygote.live += 1
        ours, theirs = socket.socketpair()
        entrances: list[int] = group.open_entrances() if group else []
        usage = group.open_usage() if group else -1
        try:
            start, uid = self._start_frame(limits, seed, group)
            interpreter.room = start["watch_files"]
            try:
                while not zygote.ask(theirs, entrances, usage, uid):  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            finally:
                theirs.close()
                for fd in (*entrances, *([usage] if usage >= 0 else ())):
                    os.close(fd)
            await interpreter.connect(ours, start)
        except BaseException:
            ours.close()
            await self._put_away(interpreter)
            raise
        return interpreter

    def _take_group(self, limits: Limits) -> Group | None:
        if self._groups is None:
            return None
        return self._groups.take(limits.memory_mb << 20, limits.processes + 1)

    def _start_frame(
        self, limits: Limits, seed: int | None, group: Group | None
    ) -> tuple[dict[str, Any], int | None]:
        assert self._settings is not None
        namespaces = self._settings.namespaces
        uid, processes, directory = self._session_uid(), limits.processes, "/tmp/work"
        if not namespaces:
            directory = os.path.join(self._rooms.make(uid), "work")
            processes += 0 if uid is not None else _threads_of_user()
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": directory,
            "TMPDIR": os.path.dirname(directory),
            "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": os.path.dirname(directory),
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",  # else each thread of a script maps 64 MiB of what it may map
        }
        if self._settings.prefix != "/usr":
            home = "/python" if namespaces else self._settings.prefix
            environment["LD_LIBRARY_PATH"] = home + "/lib"
        start = {
            "kind": "start",
            "limits": limits.as_dict(),
            "seed": seed,
            "paths": [],
            "directory": directory,
            "environment": environment,
            "alone": namespaces,
            "limit_processes": processes,
            "watch_memory": group is None,
            "watch_files": None if namespaces else os.path.dirname(directory),
        }
        return start, uid

    def _session_uid(self) -> int | None:
        """A user for one session: what the kernel counts by user, it counts by session then."""
        assert self._settings is not None
        if os.geteuid() != 0 or not self._settings.protect:
            return None
        first, count = SESSION_UIDS
        return first + next(self._uids) % count

    # ------------------------------------------------------------------------------------------- close

    async def _release(self, interpreter: Interpreter) -> None:
        self._interpreters -= 1
        await self._put_away(interpreter)

    async def _put_away(self, interpreter: Interpreter) -> None:
        interpreter.kill()
        gone = await interpreter.ended(10.0)
        interpreter.release()
        zygote, interpreter.zygote = interpreter.zygote, None
        if zygote is not None:
            zygote.live -= 1
            if zygote.live <= 0 and zygote in self._retired:
                self._retired.remove(zygote)
                await asyncio.to_thread(zygote.close)
        if interpreter.group is not None and self._groups is not None and gone:
            self._groups.give_back(interpreter.group)
        if interpreter.room is not None:
            await asyncio.to_thread(self._rooms.remove, interpreter.room)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._closed:
            return
        self._closed = True
        for session in list(self._live):
            with contextlib.suppress(RuntimeError):  # of another event loop: its zygote takes it along
                await session.close()
        self._live.clear()
        await asyncio.to_thread(self._close_processes)

    def _close_processes(self) -> None:
        with self._starting, self._lock:
            for zygote in [*self._zygotes, *self._retired]:
                if zygote is not None:
                    zygote.close()
            self._zygotes, self._retired = [], []
            if self._groups is not None:
                self._groups.close()
            self._rooms.close()

    def describe(self) -> str:
        """See `Sandbox.describe`."""
        if self._settings is None:
            return "sandbox: local, not started"
        python = f"Python {self._zygotes[0].ready['ready']}" if self._zygotes and self._zygotes[0] else ""
        why = f" (not more: {'; '.join(self._reasons)})" if self._reasons else ""
        return f"sandbox: local, level {self.level.name.lower()} ({int(self.level)}), {python}{why}"


def _threads_of_user() -> int:
    """Threads of this process's user on this machine: RLIMIT_NPROC counts them outside user namespaces."""
    uid, total = os.getuid(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == uid:
                    total += len(os.listdir(entry / "task"))
    return total


def _raise_descriptor_limit() -> None:
    """Two descriptors a session: take what the hard limit allows."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 65_536:
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
