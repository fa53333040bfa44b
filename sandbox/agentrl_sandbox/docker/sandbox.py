"""The Docker backend: one hardened container per session, one interpreter process in it, spoken to over its
stdin.

Takes containers from a warm pool and proves, before the first one is handed out, that what must be denied is
denied. Nothing is ever run by `docker exec` or copied in as an archive. Knows nothing of the frames to the
supervisor.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import uuid
from typing import TYPE_CHECKING

from ..crowd import Crowd
from ..errors import SandboxClosed, SandboxConfigError, SandboxError, SandboxUnavailable
from ..interface import Sandbox
from ..level import Level
from ..limits import Limits
from .container import (
    DEFAULT_TAG,
    ENVIRONMENT,
    Container,
    ContainerSettings,
    ContainerShape,
    container_options,
    supervisor_program,
)
from .engine import EngineCalls, connect
from .pool import (
    SANDBOX_LABEL,
    ContainerPool,
    events_of,
    owner_labels,
    remove_abandoned,
)
from .session import DockerSession

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)

# The longest frame a supervisor may send: output and reply at the largest limits.
FRAME_LIMIT = 256 << 20

CANARY = """
import ctypes, os, socket
def status(name):
    return [line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":")][0]
def refused(call):
    try: call()
    except OSError: return True
    return False
libc = ctypes.CDLL(None, use_errno=True)
{
    "a user without rights": os.getuid() != 0 and os.geteuid() != 0,
    "no capabilities": int(status("CapEff"), 16) == 0 and int(status("CapBnd"), 16) == 0,
    "no new privileges": status("NoNewPrivs") == "1",
    "a read-only root": refused(lambda: open("/canary", "w")),
    "no network": refused(lambda: socket.create_connection(("1.1.1.1", 53), 0.5)),
    "no new namespaces": libc.unshare(0x10000000) == -1,
    "no ptrace": libc.ptrace(0, 0, 0, 0) == -1,
    "a closed supervisor": all(
        refused(lambda: open(f"/proc/1/{name}", "rb").close()) for name in ("mem", "environ", "maps")
    ),
    "no io_uring": libc.syscall(425, 1, 0) == -1 and ctypes.get_errno() in (1, 38),
}
"""


class DockerSandbox(Sandbox):
    """Sessions in containers of a Docker engine.

    Args:
        image: any image with `python3`; build one with `python -m agentrl_sandbox.docker.image`.
        base_url: the engine; by default that of the environment (`DOCKER_HOST`).
        runtime: another runtime that the engine knows, such as "runsc" (gVisor).
        cpus: processor time per container, in cores.
        libraries: imported before a container is handed out, so that programs have them at once.
        warm: containers kept ready; each takes the memory of an interpreter. most: containers alive at once.
        wait_s: how long `open` waits for one when all are taken.
        max_running: programs that run at once; further `run` calls wait for their turn, which no clock of
            theirs counts. Default: eight per core of this machine.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        min_level: Level | None = None,
        allow_unsafe: bool = False,
        image: str = DEFAULT_TAG,
        base_url: str | None = None,
        runtime: str | None = None,
        cpus: float = 1.0,
        libraries: tuple[str, ...] = ("numpy", "sympy"),
        warm: int = 2,
        most: int = 64,
        wait_s: float = 120.0,
        max_running: int | None = None,
    ) -> None:
        if cpus <= 0 or warm < 0 or most < 1 or wait_s <= 0:
            raise SandboxConfigError("the docker sandbox needs cpus > 0, warm >= 0, most >= 1 and wait_s > 0")
        self._limits = limits or Limits()
        self._min_level = min_level
        self._base_url = base_url
        self._warm, self._most, self._wait_s = warm, most, wait_s
        self._id = uuid.uuid4().hex
        labels = (
            *owner_labels().items(),
            (SANDBOX_LABEL, self._id),
        )
        self.cpus = cpus
        self._settings = ContainerSettings(image, runtime, cpus, tuple(libraries), labels)
        self.crowd = Crowd(max_running)
        self.sessions: set[DockerSession] = set()
        self._client: docker.DockerClient | None = None
        self._calls = EngineCalls()
        self._pool: ContainerPool | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._missing: list[str] = []
        self._version = ""
        self.level = Level.VIRTUAL if runtime == "runsc" else Level.CONTAINED

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of programs."""
        return dict(ENVIRONMENT)

    async def start(self) -> None:
        """Finds the engine, removes what dead owners left, fills the pool and runs the canaries."""
        async with self._starting:
            if self._closed:
                raise SandboxClosed("the sandbox was closed")
            if self._pool is not None:
                return
            if self._min_level is not None and self.level < self._min_level:
                raise SandboxUnavailable(
                    f"the docker sandbox offers level {self.level.name.lower()}, below the "
                    f"{self._min_level.name.lower()} asked for; runtime='runsc' (gVisor) gives virtual"
                )
            self._client = await self._calls.run(
                "connect", connect, self._base_url, discard=lambda client: client.close()
            )
            client = self._client
            removed = await self._calls.run("remove old containers", remove_abandoned, client)
            if removed:
                log.info("removed %d containers of owners that are gone", removed)
            info = await self._calls.run("ask the engine's version", client.version)
            self._version = str(info.get("Version", "of unknown version"))
            self._pool = ContainerPool(
                self._start_container,
                ContainerShape.of(self._limits),
                warm=self._warm,
                most=self._most,
                wait_s=self._wait_s,
            )
            try:
                await self._run_canaries()
            except BaseException:
                self._pool = None
                raise
            self._pool.begin()

    async def _start_container(self, shape: ContainerShape) -> Container:
        assert self._client is not None
        options = container_options(shape, self._settings)
        program = supervisor_program(self._settings)
        container = await Container.start(self._client, self._calls, options, program, FRAME_LIMIT)
        self._missing = container.missing
        return container

    async def _run_canaries(self) -> None:
        """Raises `SandboxUnavailable` when a container allows what it must deny."""
        session = DockerSession(self, self._limits, stateless=False, seed=None)
        try:
            await session.begin()
            result = await session.run(CANARY, 30.0)
        finally:
            await session.close()
        if not result.ok or result.value is None:
            raise SandboxUnavailable(f"the canaries did not run in a container: {result.text}")
        broken = [name for name, held in ast.literal_eval(result.value).items() if not held]
        if broken:
            raise SandboxUnavailable(
                f"containers of this engine are not closed enough; missing: {', '.join(broken)}. "
                "Is seccomp switched off in the engine or the kernel?"
            )

    async def open(
        self, limits: Limits | None = None, *, stateless: bool = False, seed: int | None = None
    ) -> DockerSession:
        """As `Sandbox.open`: from the warm pool where the limits fit it, else in a container started now."""
        if self._closed:
            raise SandboxClosed("the sandbox was closed")
        await self.start()
        session = DockerSession(self, limits or self._limits, stateless=stateless, seed=seed)
        await session.begin()
        self.sessions.add(session)
        return session

    async def take(self, limits: Limits) -> Container:
        """A fresh container for these limits."""
        if self._pool is None:
            raise SandboxClosed("the sandbox was closed")
        return await self._pool.take(ContainerShape.of(limits))

    async def give_back(self, container: Container) -> None:
        """Removes a container."""
        if self._pool is not None:
            await self._pool.give_back(container)
        else:
            await container.remove()

    async def why_ended(self, container: Container, since: float) -> tuple[bool, int | None]:
        """Whether the container ran out of memory, and its exit code, None when the engine cannot tell."""
        assert self._client is not None
        try:
            for _ in range(10):
                found = await self._calls.run(
                    "ask for events", events_of, self._client, container.container_id, since
                )
                if found[1] is not None:
                    return found
                await asyncio.sleep(0.1)
        except SandboxError as error:
            log.warning("%s", error)
        return False, None

    async def close(self) -> None:
        """Removes every container of this sandbox."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(session.close() for session in list(self.sessions)))
        if self._pool is not None:
            await self._pool.close()
        if self._client is not None:
            try:
                await self._calls.run("remove containers", remove_abandoned, self._client, sandbox=self._id)
            except SandboxUnavailable as error:
                log.warning("%s", error)
            self._client.close()
        self._calls.close()

    def describe(self) -> str:
        """One line."""
        runtime = self._settings.runtime or "the engine's default runtime"
        missing = f", without {', '.join(self._missing)}" if self._missing else ""
        state = f"engine {self._version}" if self._version else "not started"
        return (
            f"sandbox: docker, level {self.level.name.lower()} (image {self._settings.image}{missing}, "
            f"{runtime}, {state})"
        )
