"""A program in a container of its own, with limits and no network but one address of the host.

The program finds a port on its loopback interface; what connects there is connected to that address, through
the stream that the engine attaches to the container. So it needs no network of the engine, works with an
engine on another machine, and ends when this process does. The image needs `python3`, which starts the
program and carries the connections (`guest.py`). Knows nothing of what the program is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import SandboxError, SandboxUnavailable
from ..result import Ended
from .container import (
    Container,
    ContainerSettings,
    ContainerShape,
    StreamLost,
    container_options,
    seccomp_profile,
    sent_program,
)
from .pool import events_of
from .shared_engine import SharedEngine

__all__ = ["ContainerLimits", "ContainerProgram", "ProgramEnded", "ProgramFailure"]

_MODULES = {"frames": "inside/frames.py", "cgroup": "docker/cgroup.py", "guest": "docker/guest.py"}
_FRAME_LIMIT = 256 << 20
_PIECE = 1 << 16
_CONNECTIONS = 32
_OWN_THREADS = _CONNECTIONS + 8
"""Of the guest: one for each connection, and a few."""


class ProgramFailure(SandboxError):
    """The program could not be started, or its container broke; the message says which."""


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """What a program may use."""

    memory_mb: int
    """Memory of all its processes and of the files that it writes together."""
    cpus: float
    """Cores."""
    cpu_s: int
    """CPU time of each of its processes."""
    processes: int
    """Processes and threads at once."""
    file_mb: int
    """Size of all files that it writes together."""
    output_bytes: int
    """Output that is kept, of each stream."""


@dataclass(frozen=True, slots=True)
class ProgramEnded(Ended):
    """How a program in a container ended."""

    memory: bool = False
    """Whether the kernel killed one of its processes for the limit on memory."""
    files: bytes = b""
    """The files of its folder as a tar archive, where they were asked for; the program may have forged it."""


@dataclass(slots=True)
class ContainerProgram:
    """One program in a container, which exists from `start` until `close`.

    Args:
        engine: that runs it.
        address: host and port that its port leads to.
        image: any with `python3`.
        limits: what it may use.
        runtime: another runtime that the engine knows, such as "runsc" (gVisor).
    """

    engine: SharedEngine
    address: tuple[str, int]
    image: str
    limits: ContainerLimits
    runtime: str | None = None
    port: int = 0
    """Port on the loopback interface of the container that leads to `address`."""
    _container: Container | None = None
    _connections: dict[int, asyncio.StreamWriter] = field(default_factory=dict[int, asyncio.StreamWriter])
    _carriers: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def start(self) -> None:
        """Make and start the container; the program itself is started by `run`.

        Raises:
            SandboxError: the engine, the image or its interpreter does not do.
        """
        self._container = await Container.start(
            self.engine.client,
            self.engine.calls,
            _options(self.image, self.limits, self.runtime, self.engine.labels()),
            sent_program(_MODULES, "become_guest"),
            _FRAME_LIMIT,
        )
        self.port = int(self._container.first.get("port", 0))

    async def run(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        *,
        text: str = "",
        files: bytes = b"",
        files_back: bool = False,
    ) -> ProgramEnded:
        """Run the program to its end; `close` ends it at any time.

        Args:
            arguments: the program first, as the image has it.
            variables: beside those of the image.
            text: its standard input.
            files: a tar archive of what its working folder has at first.
            files_back: whether the folder is wanted when it has ended.

        Raises:
            ProgramFailure: it cannot be started, or its container was lost.
        """
        container, began = self._container, time.time()
        assert container is not None
        limits = {
            "cpu_s": self.limits.cpu_s,
            "output_bytes": self.limits.output_bytes,
            "connections": _CONNECTIONS,
            "files_back": files_back,
        }
        head = {"kind": "start", "arguments": [*arguments], "variables": {**variables}, "limits": limits}
        try:
            await container.send(head, [files, text.encode(errors="surrogateescape")])
            return await self._follow(container, arguments[0])
        except (StreamLost, KeyError, IndexError, TypeError, ValueError) as error:
            why = await self._why_lost(container, began) or f"{type(error).__name__}: {error}"
            raise ProgramFailure(f"the container of the program {arguments[0]!r} was lost: {why}") from error

    async def _why_lost(self, container: Container, since: float) -> str:
        """What the engine knows of the end of a container; empty where it knows nothing."""
        with contextlib.suppress(SandboxUnavailable):
            memory, code = await self.engine.calls.run(
                "ask for events", events_of, self.engine.client, container.container_id, since
            )
            if memory:
                return f"it used more than its {self.limits.memory_mb} MB of memory"
            if code is not None:
                return f"it ended with exit status {code}"
        return ""

    async def _follow(self, container: Container, name: str) -> ProgramEnded:
        said = {"out": bytearray(), "err": bytearray()}
        while True:
            header, blobs = await container.receive()
            kind = header.get("kind")
            if kind in said and blobs:
                room = self.limits.output_bytes - len(said[kind])
                said[kind] += blobs[0][: max(0, room)]
            elif kind in ("open", "data", "end"):
                await self._connection(container, kind, header.get("id"), blobs)
            elif kind == "exit":
                out, err = (said[one].decode(errors="replace") for one in ("out", "err"))
                return ProgramEnded(
                    int(header["code"]), out, err, bool(header["cut"]), bool(header["memory"]), blobs[0]
                )
            elif kind == "failed":
                raise ProgramFailure(
                    f"the program {name!r} cannot be started in a container of image {self.image}: "
                    f"{header.get('reason')}"
                )

    async def _connection(self, container: Container, kind: str, number: Any, blobs: list[bytes]) -> None:
        """Take one frame of a connection."""
        writer = self._connections.get(number)
        if kind == "open" and writer is None and len(self._connections) <= _CONNECTIONS:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError:
                await container.send({"kind": "end", "id": number})
                return
            self._connections[number] = writer
            carrier = asyncio.ensure_future(self._carry(container, number, reader))
            self._carriers.add(carrier)
            carrier.add_done_callback(self._carriers.discard)
        elif writer is not None:
            with contextlib.suppress(OSError):
                if kind == "data" and blobs:
                    writer.write(blobs[0])
                    await writer.drain()
                else:
                    writer.close()

    async def _carry(self, container: Container, number: int, reader: asyncio.StreamReader) -> None:
        """Pass on what the address answers, until it has no more."""
        with contextlib.suppress(StreamLost):
            with contextlib.suppress(OSError):
                while piece := await reader.read(_PIECE):
                    await container.send({"kind": "data", "id": number}, [piece])
            self._hang_up(number)
            await container.send({"kind": "end", "id": number})

    def _hang_up(self, number: int) -> None:
        writer = self._connections.pop(number, None)
        if writer is not None:
            writer.close()

    async def close(self) -> None:
        """Kill the program, remove its container and hang up its connections."""
        for carrier in list(self._carriers):
            carrier.cancel()
        for number in list(self._connections):
            self._hang_up(number)
        container, self._container = self._container, None
        if container is not None:
            await container.remove()


def _options(
    image: str, limits: ContainerLimits, runtime: str | None, labels: Mapping[str, str]
) -> dict[str, Any]:
    """As hardened as a session's, but for sockets, which reach the loopback interface and nothing else."""
    shape = ContainerShape(limits.memory_mb, limits.processes + _OWN_THREADS, limits.file_mb, 100_000)
    settings = ContainerSettings(image, runtime, limits.cpus, (), tuple(labels.items()))
    families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    return {
        **container_options(shape, settings),
        "hostname": "program",
        "tmpfs": {"/tmp": f"rw,nosuid,nodev,mode=1777,size={limits.file_mb}m,nr_inodes={shape.files}"},
        "security_opt": ["no-new-privileges", f"seccomp={seccomp_profile(families)}"],
    }
