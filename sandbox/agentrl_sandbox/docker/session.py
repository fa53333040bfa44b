"""A session in a container: requests to the supervisor in it, and what became of them.

Knows the frames (`inside/frames.py`) and how a container's end is explained; knows nothing of how containers
are made or locked down. The supervisor in the container holds the clock, interrupts and kills; this side adds
a back-stop of three times the limit, stretched by what a control process waits for a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from typing import Any, Protocol

from ..control import BACK_STOP, arrives
from ..crowd import Crowd
from ..errors import SandboxError, SessionStartFailed
from ..limits import Limits
from ..outcome import result_from_frame
from ..result import Result, Status
from ..serial import SerialSession, encoded, lost
from .container import WORK_DIRECTORY, Container, StreamLost

log = logging.getLogger(__name__)

READY_LIMIT_S = 60.0
# Beyond the back-stop of a run: what an engine may need to carry the reply.
ANSWER_SLACK_S = 10.0


class Owner(Protocol):
    """The sandbox of a session: where its container comes from and goes to."""

    cpus: float
    crowd: Crowd
    sessions: set[DockerSession]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of programs."""
        ...

    async def take(self, limits: Limits) -> Container:
        """A container of this shape."""
        ...

    async def give_back(self, container: Container) -> None:
        """Return a container, which is removed or kept."""
        ...

    async def why_ended(self, container: Container, since: float) -> tuple[bool, int | None]:
        """Whether memory ended a container, and its exit code."""
        ...


class DockerSession(SerialSession):
    """A session in a container; made by `DockerSandbox.open`."""

    def __init__(self, sandbox: Owner, limits: Limits, *, stateless: bool, seed: int | None) -> None:
        super().__init__(limits, stateless=stateless, seed=seed, crowd=sandbox.crowd)
        self._sandbox = sandbox
        self._container: Container | None = None
        self._running: str | None = None

    async def begin(self) -> None:
        """Takes a container and starts the interpreter in it. Raises what `Sandbox.open` raises."""
        container = await self._sandbox.take(self._limits)
        self._container = container
        start = {
            "kind": "start",
            "limits": self._limits.as_dict(),
            "seed": self._seed,
            "paths": [],
            "directory": WORK_DIRECTORY,
            "environment": self._sandbox.environment,
            "alone": True,
            "limit_processes": None,
            "watch_memory": False,
        }
        try:
            await container.send(start)
            header, _ = await asyncio.wait_for(container.receive(), READY_LIMIT_S)
            if header.get("kind") != "ready":
                raise StreamLost(str(header.get("reason", "no reason given")))
        except (TimeoutError, StreamLost) as error:
            await self._drop()
            raise SessionStartFailed(
                f"the interpreter in a container did not start within {READY_LIMIT_S:g} s: {error}"
            ) from error
        except BaseException:
            await self._drop()
            raise

    async def run(self, code: str, timeout: float | None = None, *, stdin: str = "") -> Result:
        """As `Session.run`. A cancelled run is interrupted; the next one waits until it has ended."""
        self._check_open()
        request, time_s = uuid.uuid4().hex, self._limits.seconds(timeout)
        work = asyncio.create_task(self._run(request, code, time_s, stdin))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if self._running == request and self._container is not None:
                with contextlib.suppress(StreamLost):
                    await self._container.send({"kind": "interrupt", "id": request})
            elif self._running != request:
                work.cancel()
            work.add_done_callback(_note_failure)
            raise

    async def _run(self, request: str, code: str, time_s: float, stdin: str) -> Result:
        async with self._one_at_a_time:
            self._check_open()
            source, given = encoded(code), encoded(stdin)
            if refused := self._too_long(source, given):
                return refused
            try:
                if self._container is None:
                    await self.begin()
                self._turn = self._crowd.turn()
                async with self._turn:
                    return await self._exchange(request, source, given, time_s)
            except SandboxError as error:
                await self._drop()
                return Result(Status.INFRASTRUCTURE_FAILURE, error=str(error), session_alive=False)
            finally:
                self._running = None
                if self._stateless:
                    await self._drop()

    async def _exchange(self, request: str, source: bytes, stdin: bytes, time_s: float) -> Result:
        container = self._container
        assert container is not None
        began, began_at = time.monotonic(), time.time()
        self._running = request
        message = {"kind": "run", "id": request, "time_s": time_s}
        try:
            await container.send(message, [source, stdin])
            header, blobs = await self._await_reply(container, request, time_s)
        except StreamLost:
            return await self._post_mortem(container, began, began_at)
        except TimeoutError:
            stopped = await container.stopped()
            await self._drop()
            wall = time.monotonic() - began
            if stopped:
                return lost(Status.PROTOCOL_LOST, "the program stopped the process that watches it", wall)
            return self._overdue(time_s, wall)
        result = result_from_frame(header, blobs, self._limits, time.monotonic() - began, time_s=time_s)
        if not result.session_alive:
            await self._drop()
        return result

    async def _await_reply(
        self, container: Container, request: str, time_s: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """The reply to `request`. Raises `StreamLost`, or `TimeoutError` when the back-stop is reached."""
        early = 2 * (time_s + self._limits.grace_s) + ANSWER_SLACK_S
        late = BACK_STOP * time_s / min(1.0, self._sandbox.cpus) + ANSWER_SLACK_S
        began = time.monotonic()
        reply = asyncio.create_task(container.receive())
        try:
            done, _ = await asyncio.wait({reply}, timeout=early)
            # A program can stop its supervisor by a signal; that must not look like a starved machine.
            if not done and (await container.stopped()):
                raise TimeoutError
            if not done and not await arrives(reply, began, max(early, late)):
                raise TimeoutError
            header, blobs = reply.result()
        finally:
            reply.cancel()
        if header.get("kind") != "result" or header.get("id") != request or len(blobs) != 3:
            raise StreamLost("a reply to another request")
        return header, blobs

    async def _post_mortem(self, container: Container, began: float, began_at: float) -> Result:
        """Why the container ended in the middle of a run."""
        self._container = None
        wall = time.monotonic() - began
        if self._closed:
            await self._sandbox.give_back(container)
            reason = "the session was closed in the middle of a run"
            return lost(Status.INFRASTRUCTURE_FAILURE, reason, wall)
        memory, exit_code = await self._sandbox.why_ended(container, began_at)
        await self._sandbox.give_back(container)
        if memory:
            return self._memory_full(wall)
        if exit_code is None:
            reason = "the container or the Docker engine was lost in the middle of a run"
            return lost(Status.INFRASTRUCTURE_FAILURE, reason, wall)
        if exit_code > 128:
            reason = "the program killed the process that watches it"
            return lost(Status.KILLED, reason, wall, exit_code - 128)
        return lost(Status.PROTOCOL_LOST, "the program broke the line to its supervisor", wall)

    async def _drop(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            await self._sandbox.give_back(container)

    def _leave(self) -> None:
        self._sandbox.sessions.discard(self)

    def _hang_up(self) -> None:
        if self._container is not None:
            self._container.hang_up()


def _note_failure(task: asyncio.Task[Result]) -> None:
    """Marks the exception of an abandoned run as seen."""
    if not task.cancelled() and task.exception() is not None:
        log.debug("an abandoned run failed: %s", task.exception())
