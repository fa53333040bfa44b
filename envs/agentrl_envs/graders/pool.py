"""A pool of grader processes that can be killed, with limits that a busy machine does not change.

A request's time is the CPU time of its process: past `time_s` the process is killed and the verdict is
TIMED_OUT, however long other work kept it from a processor. Wall time a hundred times as long is a back-stop:
reaching only that means that the machine is at fault, and the verdict is GRADER_FAILED. Works from any thread
and any event loop. Knows nothing of mathematics.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .verdict import Verdict

__all__ = ["Pool", "PoolLimits"]

_LOOK_S = 0.02  # how often a running request is looked at
_START_LIMIT_S = 120.0  # importing sympy takes a second or two; a machine can be very busy
_BACKSTOP = 100.0  # times the limit, in wall time


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits of one comparison: CPU time in seconds, memory in MiB on top of the imported libraries."""

    time_s: float = 5.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        if not self.time_s > 0 or self.memory_mb < 64:
            raise ValueError(f"grader limits {self}: want time_s > 0 and memory_mb >= 64")


_TRIES = 8  # of one request; a child that somebody else kills may be one of several in a row
_KILLED = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # by somebody else


class _ServerLost(Exception):
    """The server of forks is gone or does not answer."""


class _Crashed(Exception):
    """A child ended by its own fault: a stack that overflowed, memory that ran out at the wrong moment."""


class _Server:
    """The process that forks children, and alone kills them, so that no reused pid is ever hit."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = "import sys; sys.path[:] = sys.argv[2:]; from agentrl_envs.graders.child import main; main()"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno()), *filter(None, sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )
        self._control = ours
        self._lock = threading.Lock()
        try:
            self._answer(_START_LIMIT_S)
        except BaseException:
            self.close()
            raise

    def _answer(self, limit_s: float) -> dict[str, Any]:
        data, deadline = b"", time.monotonic() + limit_s
        while not data.endswith(b"\n"):
            self._control.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                chunk = self._control.recv(4096)
            except OSError as error:
                raise _ServerLost(
                    f"the grader's server did not answer within {limit_s:g} s: {error}"
                ) from None
            if not chunk:
                raise _ServerLost(f"the grader's server ended (exit status {self._process.poll()})")
            data += chunk
        return json.loads(data)

    def fork(self, memory_mb: int) -> tuple[int, socket.socket]:
        """(pid, socket) of a new child."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                request = json.dumps({"memory_mb": memory_mb}).encode()
                socket.send_fds(self._control, [request], [theirs.fileno()])
                return self._answer(30.0)["pid"], ours
        except BaseException:
            ours.close()
            raise

    def kill(self, pid: int) -> int:
        """Kill a child and wait for its end; its wait status."""
        with self._lock:
            self._control.sendall(json.dumps({"kill": pid}).encode())
            return self._answer(30.0)["status"]

    def close(self) -> None:
        """End the server; its children go with it."""
        self._control.close()
        self._process.kill()
        self._process.wait(10)


class Pool:
    """`submit(answer, gold)` gives a future of a Verdict; it never raises for what the answer does."""

    def __init__(self, limits: PoolLimits | None = None, processes: int | None = None) -> None:
        self.limits = limits or PoolLimits()
        self.processes = processes or max(2, min(8, (os.cpu_count() or 2) // 2))
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._state: dict[str, Any] = {"server": None, "closed": False, "own_s": 0.0, "owner": os.getpid()}
        self._state["lock"] = threading.Lock()
        for i in range(self.processes):
            slot = _Slot(self._state, self._jobs, self.limits)
            threading.Thread(target=slot.work, name=f"grader-{i}", daemon=True).start()
        self._finalizer = weakref.finalize(self, _shut, self._state, self._jobs, self.processes)

    def submit(self, answer: str, gold: str, tolerance: float = 0.0) -> Future[Verdict]:
        """Future verdict on a stated answer and a gold one."""
        if self._state["closed"]:
            raise RuntimeError("the grader's pool is closed")
        future: Future[Verdict] = Future()
        self._jobs.put((future, {"answer": answer, "gold": gold, "tolerance": tolerance}))
        return future

    def close(self) -> None:
        """End all processes; pending requests get GRADER_FAILED."""
        self._finalizer()


def _shut(state: dict[str, Any], jobs: queue.SimpleQueue[Any], slots: int) -> None:
    if state["owner"] != os.getpid():
        return  # a copy in a forked process: the server is the parent's
    state["closed"] = True
    for _ in range(slots):
        jobs.put(None)
    with state["lock"]:
        server, state["server"] = state["server"], None
    if server is not None:
        server.close()


class _Slot:
    """One thread with one child: takes a request, watches the child, answers."""

    def __init__(self, state: dict[str, Any], jobs: queue.SimpleQueue[Any], limits: PoolLimits) -> None:
        self._state, self._jobs, self._limits = state, jobs, limits
        self._pid: int | None = None
        self._socket: socket.socket | None = None

    def work(self) -> None:
        """Serve until told to stop."""
        while (job := self._jobs.get()) is not None:
            future, request = job
            if not future.set_running_or_notify_cancel():
                continue
            verdict, crashes = Verdict.GRADER_FAILED, 0
            for _attempt in range(_TRIES):
                try:
                    verdict = self._ask(request)
                    break
                except _Crashed:
                    crashes += 1
                    if crashes == 2:  # twice the same is the answer's own doing
                        verdict = Verdict.CANNOT_PARSE
                        break
                except (_ServerLost, OSError, ValueError, subprocess.SubprocessError):
                    if self._state["closed"]:
                        break
            future.set_result(verdict)
            del job, future
        self._drop()

    def _child(self) -> socket.socket:
        """This slot's child, forked now if there is none."""
        if self._socket is not None:
            return self._socket
        with self._state["lock"]:
            if self._state["closed"]:
                raise _ServerLost("the grader's pool is closed")
            if self._state["server"] is None:
                self._state["server"] = _Server()
            server = self._state["server"]
        try:
            self._pid, channel = server.fork(self._limits.memory_mb)
        except (_ServerLost, OSError):
            self._lose(server)
            raise
        self._socket = channel
        return channel

    def _drop(self) -> int:
        """Kill this slot's child, if it has one; its wait status."""
        pid, self._pid = self._pid, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        server = self._state["server"]
        if pid is not None and server is not None:
            try:
                return server.kill(pid)
            except (_ServerLost, OSError):
                self._lose(server)
        return 0

    def _lose(self, server: _Server) -> None:
        """Give up a server that does not answer; the next child comes from a new one."""
        with self._state["lock"]:
            if self._state["server"] is server:
                self._state["server"] = None
        server.close()

    def _ask(self, request: dict[str, Any]) -> Verdict:
        channel = self._child()
        request = {**request, "cpu_s": int(self._limits.time_s * 1.5) + 2}
        try:
            channel.settimeout(30.0)
            channel.sendall(json.dumps(request).encode() + b"\n")
            reply = self._watch(channel)
        except OSError:
            ended_by = self._drop() & 0x7F
            if ended_by == signal.SIGXCPU:  # the kernel's limit on CPU time, where this thread was starved
                return Verdict.TIMED_OUT
            if ended_by and ended_by not in _KILLED:
                raise _Crashed from None
            raise
        if isinstance(reply, Verdict):
            self._drop()
            return reply
        if reply["last"]:
            self._drop()
        return Verdict(reply["verdict"])

    def _watch(self, channel: socket.socket) -> dict[str, Any] | Verdict:
        """The child's reply; TIMED_OUT or GRADER_FAILED when it went past its limit."""
        started, before, data = time.monotonic(), _cpu_s(self._pid), b""
        while not data.endswith(b"\n"):
            readable, _, _ = select.select([channel], [], [], _LOOK_S)
            self._state["own_s"] = own = _cpu_s(self._pid) - before
            if readable:
                chunk = channel.recv(65536)
                if not chunk:
                    raise ConnectionResetError("the grader's child died")
                data += chunk
            elif own >= self._limits.time_s:
                return Verdict.TIMED_OUT
            elif time.monotonic() - started >= _BACKSTOP * self._limits.time_s:
                return Verdict.GRADER_FAILED
        return json.loads(data)


def _cpu_s(pid: int | None) -> float:
    """CPU seconds of a process, by the clock that clock_getcpuclockid(3) gives; 0.0 when it is gone."""
    try:
        return time.clock_gettime((~(pid or 0) << 3) | 2)
    except OSError:
        return 0.0
