"""A session of the local jail: one supervisor process at the other end of a socket.

Knows the wire protocol and the session's process, not how the jail is built. The host holds a pidfd, so a
kill never meets a process that took over the number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..control import BACK_STOP, arrives
from ..crowd import Crowd
from ..errors import PoolExhausted, SandboxError, SessionStartFailed
from ..limits import Limits
from ..outcome import clean, result_from_frame
from ..result import Result, Status
from ..serial import SerialSession, encoded, lost
from ..wire import Line, Lost, encode_frame
from .cgroups import Group
from .zygote_handle import Zygote

SLACK_S = 0.5
"""Longest time from a limit to the answer that it was reached, where the machine is idle."""
AGAIN_S = 30.0
"""Longest wait for a fresh process in a room that was kept; then there is a new room."""


class Interpreter:
    """One live supervisor: its line, its pidfd, its control group."""

    def __init__(self, limits: Limits, group: Group | None, namespaces: bool):
        self.limits, self.group, self.namespaces = limits, group, namespaces
        self.room: str | None = None
        self.zygote: Zygote | None = None
        self.pidfd = -1
        self.pid = 0
        self.python = ""
        self.resting = False
        self.line = Line(16 * limits.output_bytes + (1 << 20))

    async def connect(self, sock: socket.socket, start: dict[str, Any]) -> None:
        """Send the start frame, take the pidfd, wait until the interpreter is ready. Raises Lost."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.send(encode_frame(start))
        readable = loop.create_future()
        loop.add_reader(sock, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(sock)
        try:
            data, fds, _, _ = socket.recv_fds(sock, 1, 1)
        except OSError as error:
            raise Lost(str(error)) from error
        if fds:
            self.pidfd = fds[0]
            self.pid = _pid_of(self.pidfd)
        await loop.create_connection(lambda: self.line, sock=sock)
        if data == b"":
            raise Lost("the zygote hung up")
        if data != b"P":
            self.line.data_received(data)
        header, _ = await self.line.receive()
        self._check_ready(header)

    def rest(self) -> None:
        """Kill what ran and forget it; the room is kept if nothing was left in it. Raises Lost."""
        self.line.send({"kind": "rest"})
        self.resting = True

    async def again(self) -> None:
        """After `rest`: a fresh process in the same room. Raises Lost where the room was not kept."""
        self.line.send({"kind": "again"})
        self.resting = False
        try:
            self._check_ready((await self.line.receive())[0])
        except asyncio.CancelledError:
            # The answer is still to come, and the next run would take it for its own.
            self.line.lost = "its start was cancelled"
            self.kill()
            raise
        if self.group is not None:
            self.group.forget()

    def _check_ready(self, header: dict[str, Any]) -> None:
        if header.get("kind") != "ready":
            raise Lost(str(header.get("reason") or header))
        self.python = str(header.get("python"))

    def kill(self) -> None:
        """Kill everything of the session.

        Its first process takes the namespace along. Without one, that is left to the supervisor, which sees
        the end of its line and kills the program's process group, all in one call: whoever lists processes
        to kill them would miss those that fork faster.
        """
        self.line.close()
        if self.namespaces:
            self._kill_first()

    def _kill_first(self) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def ended(self, seconds: float) -> bool:
        """After `kill`: wait for the end, and enforce it where a supervisor does not answer."""
        if not self.namespaces and not await self.gone(seconds / 2):
            for pid in _session_members(self.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self._kill_first()
        return await self.gone(seconds)

    async def gone(self, seconds: float) -> bool:
        """Wait until the kernel has taken the session's first process away."""
        if self.pidfd < 0:
            return True
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(self.pidfd, lambda: ended.done() or ended.set_result(None))
        try:
            await asyncio.wait_for(ended, seconds)
            return True
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self.pidfd)

    def release(self) -> None:
        """Close the pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


Start = Callable[[Limits, int | None], Awaitable[Interpreter]]
Release = Callable[[Interpreter], Awaitable[None]]


class LocalSession(SerialSession):
    """A session of the local jail; see `Session`."""

    def __init__(
        self,
        start: Start,
        release: Release,
        on_close: Callable[[LocalSession], None],
        limits: Limits,
        *,
        stateless: bool,
        seed: int | None,
        crowd: Crowd,
    ):
        super().__init__(limits, stateless=stateless, seed=seed, crowd=crowd)
        self._start, self._release, self._on_close = start, release, on_close
        self._interpreter: Interpreter | None = None
        self._unread: str | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the supervisor, None while there is none."""
        return self._interpreter.pid if self._interpreter else None

    async def begin(self) -> None:
        """See `SerialSession.begin`."""
        self._interpreter = await self._start(self._limits, self._seed)

    async def run(self, code: str, timeout: float | None = None, *, stdin: str = "") -> Result:
        """See `Session.run`."""
        self._check_open()
        source, given = encoded(code), encoded(stdin)
        if refused := self._too_long(source, given):
            return refused
        time_s = self._limits.seconds(timeout)
        async with self._one_at_a_time:
            self._check_open()
            try:
                interpreter = await self._ready()
            except SandboxError as error:
                reason = f"No interpreter could be started: {error}"
                return Result(Status.INFRASTRUCTURE_FAILURE, error=reason, session_alive=False)
            try:
                self._turn = self._crowd.turn()
                async with self._turn:
                    result = await self._call(interpreter, source, given, time_s)
            except PoolExhausted as error:
                return Result(Status.INFRASTRUCTURE_FAILURE, error=str(error))
            except asyncio.CancelledError:
                self._let_go(interpreter)
                raise
            if not result.session_alive:
                await self._drop()
            elif self._stateless:
                await self._forget(interpreter)
            return result

    async def _forget(self, interpreter: Interpreter) -> None:
        """The next run of a session without state gets a fresh process, and a fresh room if this one is not
        as it was."""
        try:
            if not interpreter.namespaces:
                raise Lost("its processes and files are not in a room of their own")
            interpreter.rest()
        except Lost:
            await self._drop()

    async def _ready(self) -> Interpreter:
        """The live interpreter, after what a cancelled run left behind; a fresh one where it died."""
        interpreter = self._interpreter
        if interpreter is not None and self._unread is not None:
            try:
                wait = 10 * self._limits.grace_s
                header, _ = await asyncio.wait_for(interpreter.line.receive(), wait)
                if header.get("id") != self._unread or not header.get("alive"):
                    raise Lost("the cancelled run took the session with it")
                if self._stateless:
                    await self._forget(interpreter)
            except (Lost, TimeoutError):
                await self._drop()
            self._unread = None
        interpreter = self._interpreter
        if interpreter is not None and interpreter.resting:
            try:
                await asyncio.wait_for(interpreter.again(), AGAIN_S)
            except (Lost, TimeoutError):
                await self._drop()
        if self._interpreter is not None and self._interpreter.line.lost:
            await self._drop()
        if self._interpreter is None:
            self._interpreter = await self._start(self._limits, self._seed)
        return self._interpreter

    async def _call(self, interpreter: Interpreter, code: bytes, stdin: bytes, time_s: float) -> Result:
        request = secrets.token_hex(16)
        began = time.monotonic()
        self._unread = request
        try:
            interpreter.line.send({"kind": "run", "id": request, "time_s": time_s}, (code, stdin))
            frame = await self._receive(interpreter, time_s)
            if frame is None:
                self._unread = None
                return self._overdue(time_s, time.monotonic() - began)
            header, blobs = frame
            if header.get("kind") != "result" or header.get("id") != request:
                raise Lost(str(header.get("reason") or "a frame that nobody asked for"))
        except Lost as error:
            return await self._explain(interpreter, str(error), began)
        self._unread = None
        wall = time.monotonic() - began
        dead = not header.get("alive")
        killed = dead and interpreter.group is not None and interpreter.group.out_of_memory()
        return result_from_frame(header, blobs, self._limits, wall, time_s=time_s, out_of_memory=killed)

    async def _receive(
        self, interpreter: Interpreter, time_s: float
    ) -> tuple[dict[str, Any], list[bytes]] | None:
        """The next frame; None when the back-stop is reached. Raises Lost."""
        began, usual = time.monotonic(), time_s + min(time_s, self._limits.grace_s) + SLACK_S
        try:
            async with asyncio.timeout(usual):
                return await interpreter.line.receive()
        except TimeoutError:
            pass
        answer = asyncio.ensure_future(interpreter.line.receive())
        try:
            return answer.result() if await arrives(answer, began, max(BACK_STOP * time_s, usual)) else None
        finally:
            answer.cancel()

    async def _explain(self, interpreter: Interpreter, reason: str, began: float) -> Result:
        """The supervisor is gone without a word: for memory, or something of ours broke."""
        self._unread, wall = None, time.monotonic() - began
        if interpreter.group is not None and interpreter.group.out_of_memory():
            return self._memory_full(wall)
        text = f"The connection to the session's supervisor was lost: {clean(reason)}."
        return lost(Status.INFRASTRUCTURE_FAILURE, text, wall)

    def _let_go(self, interpreter: Interpreter) -> None:
        """The caller has gone: interrupt the program; the next run finds the state, or a fresh session."""
        with contextlib.suppress(Lost):
            if self._unread is not None:
                interpreter.line.send({"kind": "interrupt", "id": self._unread})

    async def _drop(self) -> None:
        interpreter, self._interpreter, self._unread = self._interpreter, None, None
        if interpreter is not None:
            await self._release(interpreter)

    def _leave(self) -> None:
        self._on_close(self)

    def _hang_up(self) -> None:
        if self._interpreter is not None:
            self._interpreter.kill()


def _pid_of(pidfd: int) -> int:
    """The process id, as this process sees it, behind a pidfd."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise SessionStartFailed("the kernel does not say which process a pidfd is of")


def _session_members(leader: int) -> list[int]:
    """Processes of the session (setsid) of `leader`, itself apart."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == leader:
            continue
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[3]) == leader:
                found.append(int(name))
    return found
