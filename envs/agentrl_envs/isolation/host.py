"""Processes that hold environments: started when episodes need them, replaced when they die, block or grow.

Each serves many episodes of one environment class. Knows nothing of what is asked of them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..errors import EnvError, ServerFailure
from ..processes import end_of
from ..secret_text import masked
from ..threads import THREADS
from .channel import PROTOCOL, Channel, Refused
from .command import command
from .remote import connect
from .wire import error_of, told_error

__all__ = ["Host", "Hosts", "end_hosts"]

START_S = 120.0
"""Within which a process must have loaded its environment."""
GRACE_S = 10.0
"""How much longer than an environment's own limit a process is waited for, before it counts as blocked."""
LINGER_S = 30.0
"""How long a process is kept while it has no episode."""
_END_S = 15.0
"""Within which a process that is told to end has done so, or was killed."""
_LOOK_S = 1.0

Handler = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Which environment a process holds, and how.

    Args:
        spec: of the environment, as `load_env` takes it.
        settings: of the environment.
        python: interpreter; empty is this process's own.
        memory_mb: resident memory from which a process gets no more episodes; at twice that it is killed. 0
            sets no limit.
        address: `HOST:PORT` of a server of environments; empty starts a process here.
    """

    spec: str
    settings: Mapping[str, Any] = field(repr=False)
    python: str = ""
    memory_mb: int = 0
    address: str = ""


class Host:
    """One process."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.episodes: dict[int, Handler] = {}
        """Who answers the questions of each episode."""
        self.idle_since = time.monotonic()
        """When its last episode left; means something only while it has none."""
        self.about: Mapping[str, Any] = {}
        self.worn = False
        """Whether it gets no more episodes."""
        self._why = ""
        self._looked = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.pid = 0
        peer = connect(place.address) if place.address else self._started(place)
        self.channel = Channel(peer, self._on_frame, self._on_lost, f"env-{self.pid or place.address}")

    def _started(self, place: Place) -> socket.socket:
        """Start the process; the connection to it."""
        self._log = log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command(theirs.fileno(), python=place.python),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            log.close()
            raise EnvError(f"env.python = {place.python!r} cannot be started: {error}") from error
        self.pid = self._process.pid
        return ours

    def __str__(self) -> str:
        if self.place.address:
            return f"the environment at {self.place.address}"
        return f"the process of the environment {masked(self.place.spec)!r} (pid {self.pid})"

    def load(self) -> None:
        """Let it load the environment. EnvError, as of `load_env`, when that fails."""
        self.about = self.ask_now(
            "load", START_S, protocol=PROTOCOL, spec=self.place.spec, settings=dict(self.place.settings)
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.channel.open

    @property
    def killed(self) -> bool:
        """Whether it was told to die, and may not have done so yet."""
        return bool(self._why)

    def ask_now(self, do: str, limit_s: float, **given: Any) -> Any:
        """Ask, and block until the answer is there.

        Raises:
            ServerFailure: it died, or did not answer within the limit, and was killed.
            EnvError: what the environment raised.
        """
        future = self.channel.ask(do, **given)
        try:
            return future.result(limit_s)["is"]
        except FutureTimeout:
            raise self._blocked(do, limit_s) from None
        except (Refused, ConnectionError) as error:
            raise self._raised(error, do) from None

    async def ask(self, do: str, limit_s: float, **given: Any) -> Mapping[str, Any]:
        """The same in an event loop; the answer with what changed beside it."""
        future = asyncio.wrap_future(self.channel.ask(do, **given))
        try:
            async with asyncio.timeout(limit_s + GRACE_S):
                answer = await future
        except TimeoutError:
            raise self._blocked(do, limit_s + GRACE_S) from None
        except (Refused, ConnectionError) as error:
            raise self._raised(error, do) from None
        self._look()
        return answer

    def kill(self, why: str) -> None:
        """End it at once; whoever waits for it is told why."""
        self._why = self._why or why
        self.worn = True
        if self._process is None:
            self.channel.close()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """End it and wait for its end."""
        self.worn = True
        self.channel.close()
        if self._process is None or self._log is None:
            return
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.kill("it did not end")
            self._process.wait(10.0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started
        self._log.close()

    def _on_frame(self, frame: Mapping[str, Any]) -> None:
        handler = self.episodes.get(frame.get("episode", -1))
        if handler is not None:
            handler(frame)
        elif "ask" in frame:
            self.channel.answer(frame["ask"], error=told_error(EnvError("the episode is over")))

    def _on_lost(self) -> None:
        self.worn = True

    def _blocked(self, do: str, limit_s: float) -> ServerFailure:
        why = f"did not answer {do!r} within {limit_s:g} s, and was killed"
        self.kill(why)
        return ServerFailure(f"{self} {why}{self._said()}")

    def _raised(self, error: Refused | ConnectionError, do: str) -> BaseException:
        if isinstance(error, Refused):
            return error_of(error.error)
        why = self._why or f"died in {do!r}: {self._status()}"
        return ServerFailure(f"{self} {why}{self._said()}")

    def _status(self) -> str:
        if self._process is None:
            return "the connection was lost"
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.kill("closed its connection")
            return "it closed its connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _said(self) -> str:
        if self._log is None or self._log.closed:
            return ""
        text = end_of(self._log)
        return f"; it wrote: {text}" if text else ""

    def _look(self) -> None:
        """Look at its memory now and then."""
        if not (self.pid and self.place.memory_mb) or time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError):
            return
        resident = pages * os.sysconf("SC_PAGE_SIZE") >> 20
        if resident > 2 * self.place.memory_mb:
            self.kill(f"was killed: it had {resident} MB of memory, more than twice env.memory_mb")
        elif resident > self.place.memory_mb:
            self.worn = True


@dataclass
class Hosts:
    """The processes of one environment.

    Args:
        place: what each holds.
        workers: most of them that get new episodes at once.
    """

    place: Place
    workers: int = 1
    _hosts: list[Host] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _reaper: threading.Thread | None = None

    def __post_init__(self) -> None:
        _POOLS.append(self)

    async def take(self, handler: Handler) -> tuple[Host, int]:
        """A process for one episode, and the episode's number; see `leave`."""
        number = next(_NUMBERS)
        host = self._free(number, handler)
        if host is None:
            starting = THREADS.submit(partial(self._start, number, handler))
            try:
                host = await asyncio.wrap_future(starting)
            except BaseException:
                # Whoever wanted it is gone; the process starts all the same, and is for others.
                starting.add_done_callback(partial(self._leave_started, number))
                raise
        return host, number

    @contextlib.contextmanager
    def ready(self) -> Iterator[Host]:
        """A process that has loaded the environment, kept meanwhile, for a function that may block."""
        number = next(_NUMBERS)
        starting = THREADS.submit(partial(self._start, number, _no_questions))
        try:
            host = starting.result()
            yield host
        finally:
            starting.add_done_callback(partial(self._leave_started, number))

    def leave(self, host: Host, number: int) -> None:
        """An episode is over. Its process is kept for `LINGER_S`, unless it is worn."""
        with self._changed:
            host.episodes.pop(number, None)
            host.idle_since = time.monotonic()
            self._changed.notify_all()

    def end(self) -> None:
        """End all of them."""
        with self._changed:
            hosts, self._hosts = self._hosts, []
            reaper = self._reaper
            self._changed.notify_all()
        for host in hosts:
            host.end()
        if reaper is not None:
            reaper.join(_END_S)

    def _leave_started(self, number: int, starting: Future[Host]) -> None:
        if not starting.cancelled() and starting.exception() is None:
            self.leave(starting.result(), number)

    def _free(self, number: int, handler: Handler) -> Host | None:
        """The process with the fewest episodes; None where another shall be started."""
        with self._changed:
            ready = [host for host in self._hosts if not host.worn]
            host = min(ready, key=lambda host: len(host.episodes), default=None)
            if host is None or (host.episodes and len(ready) < self.workers):
                return None
            host.episodes[number] = handler
            return host

    def _start(self, number: int, handler: Handler) -> Host:
        with _STARTING:  # one at a time: others may take what was started meanwhile
            if (host := self._free(number, handler)) is not None:
                return host
            host = Host(self.place)
            try:
                host.load()
            except BaseException:
                host.end()
                raise
            with self._changed:
                host.episodes[number] = handler
                self._hosts.append(host)
                if self._reaper is None:
                    self._reaper = threading.Thread(target=self._reap, name="env-reaper", daemon=True)
                    self._reaper.start()
            return host

    def _reap(self) -> None:
        """End what is worn or was idle for `LINGER_S`, until there is no process."""
        while True:
            with self._changed:
                idle = [host for host in self._hosts if not host.episodes]
                now = time.monotonic()
                ended = [host for host in idle if host.worn or now - host.idle_since >= LINGER_S]
                for host in ended:
                    host.worn = True
                    self._hosts.remove(host)
                if not self._hosts and not ended:
                    self._reaper = None
                    return
                if not ended:
                    self._changed.wait(min((host.idle_since + LINGER_S - now for host in idle), default=None))
            for host in ended:
                host.end()


def _no_questions(frame: Mapping[str, Any]) -> None:
    """Handler of what is no episode."""


_POOLS: list[Hosts] = []
_NUMBERS = itertools.count()
_STARTING = threading.Lock()


def end_hosts() -> None:
    """End all processes that hold environments; those that are needed later are started again."""
    for pool in _POOLS:
        pool.end()


atexit.register(end_hosts)
