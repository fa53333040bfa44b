"""One hardened container and the byte stream to the process in it.

Knows how a container is locked down, started, spoken to and removed; knows nothing of sessions, pools or
programs. The session program is sent over the attached socket, so any image that has `python3` serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..errors import SandboxConfigError, SandboxUnavailable, SessionStartFailed
from ..limits import Limits
from ..wire import decode_frame, encode_frame
from .engine import EngineCalls

if TYPE_CHECKING:
    import docker

NOBODY = "65534:65534"
WORK_DIRECTORY = "/tmp/work"
# What the interpreter, its supervisor and the warmed libraries take before a program has begun.
BASE_MEMORY_MB = 128
SHM_MB = 4
START_LIMIT_S = 60.0
_MIB = 1 << 20
_STDERR_KEPT = 4096

_INSIDE = (
    "frames", "processes", "room", "meter", "generators", "cells", "notebook", "upkeep", "interpreter",
    "supervisor", "seccomp",
)  # fmt: skip
_MODULES = {
    **{name: f"inside/{name}.py" for name in _INSIDE},
    "cgroup": "docker/cgroup.py",
    "entry": "docker/entry.py",
}
"""Modules of a session's supervisor: names in a container, and files of this package."""

# Reads the real program from the socket: an argument would be seen in every process list, and is limited in
# length. Modules come in the order in which they import each other; the last has the function that is called.
BOOTSTRAP = """
import os, sys, types
def read(count):
    parts = b""
    while len(parts) < count:
        part = os.read(0, count - len(parts))
        if not part: os._exit(3)
        parts += part
    return parts
names, function, arguments = eval(read(int(read(8))))
for name in names:
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(read(int(read(8))), "<%s>" % name, "exec"), module.__dict__)
getattr(module, function)(*arguments)
"""

DEFAULT_TAG = "agentrl-sandbox:local"
"""The image that `image.py` builds and sandboxes start."""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": WORK_DIRECTORY,
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp",
    # One thread each: threads of a numerical library would be lost in the fork and count as processes.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Each thread would map 64 MiB for allocations of its own, and seven would fill what a process may map.
    "MALLOC_ARENA_MAX": "2",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class ContainerShape:
    """The limits that belong to the container, not to a session; containers of one shape are alike."""

    memory_mb: int
    processes: int
    file_mb: int
    files: int

    @classmethod
    def of(cls, limits: Limits) -> ContainerShape:
        """The shape that these limits need."""
        return cls(int(limits.memory_mb), int(limits.processes), int(limits.file_mb), int(limits.files))


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """What all containers of a sandbox have in common."""

    image: str
    runtime: str | None = None
    cpus: float = 1.0
    libraries: tuple[str, ...] = ("numpy", "sympy")
    labels: tuple[tuple[str, str], ...] = ()


def seccomp_profile(families: Sequence[int] = (socket.AF_UNIX,)) -> str:
    """The system calls a program may make, as the JSON that the engine wants.

    Args:
        families: of the sockets that it may open.
    """
    text = resources.files("agentrl_sandbox").joinpath("docker/seccomp.json").read_text()
    profile = json.loads(text)
    for rule in profile["syscalls"]:
        rule.pop("comment", None)
    (sockets,) = (rule for rule in profile["syscalls"] if rule["names"] == ["socket", "socketpair"])
    profile["syscalls"] += [
        {**sockets, "args": [{**sockets["args"][0], "value": int(one)}]}
        for one in families
        if one != socket.AF_UNIX
    ]
    return json.dumps(profile)


def limited(
    image: str,
    labels: Mapping[str, str],
    *,
    memory_mb: int,
    processes: int,
    cpus: float,
    runtime: str | None,
    entrypoint: Sequence[str],
) -> dict[str, Any]:
    """The arguments of docker-py's `containers.create` that all containers share: limits, and no network.

    Args:
        image: of the container.
        labels: by which it is found again.
        memory_mb: memory of all its processes; there is no swap beside it.
        processes: processes and threads at once.
        cpus: cores.
        runtime: another than the engine's own.
        entrypoint: the program that is process 1, with its arguments.
    """
    from docker.types import LogConfig, Ulimit

    options: dict[str, Any] = {
        "image": image,
        "labels": dict(labels),
        "entrypoint": list(entrypoint),
        "command": [],
        "network_mode": "none",
        "ipc_mode": "private",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "mem_limit": memory_mb * _MIB,
        "memswap_limit": memory_mb * _MIB,
        # RLIMIT_NPROC counts a user's processes on the whole machine, so it would couple containers.
        "pids_limit": processes,
        "nano_cpus": int(cpus * 1e9),
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],
        # Process 1 is ours and does what an init does. The engine's own would run as the program's user and,
        # other than our supervisor, leave its memory and environment open to the program.
        "init": False,
        "oom_score_adj": 500,
        "stdin_open": True,
        "tty": False,
        # The engine would else write all that a program prints, without bound, to the host's disk.
        "log_config": LogConfig(type=LogConfig.types.NONE),
        "auto_remove": True,
    }
    return options | ({"runtime": runtime} if runtime else {})


def container_options(shape: ContainerShape, settings: ContainerSettings) -> dict[str, Any]:
    """The arguments of docker-py's `containers.create`: everything denied that a program does not need."""
    from docker.types import Ulimit

    common = limited(
        settings.image,
        dict(settings.labels),
        memory_mb=shape.memory_mb + BASE_MEMORY_MB,
        processes=shape.processes + 1,  # and the supervisor
        cpus=settings.cpus,
        runtime=settings.runtime,
        entrypoint=["python3", "-I", "-c", BOOTSTRAP],
    )
    return {
        **common,
        "user": NOBODY,
        "working_dir": "/tmp",
        "environment": ENVIRONMENT,
        "hostname": "sandbox",
        "read_only": True,
        # One file system for everything a program may write, so that one size bounds it.
        "tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,mode=1777,size={shape.file_mb}m,nr_inodes={shape.files}"},
        "shm_size": SHM_MB * _MIB,
        "security_opt": [*common["security_opt"], f"seccomp={seccomp_profile()}"],
        "ulimits": [*common["ulimits"], Ulimit(name="memlock", soft=65536, hard=65536)],
    }


def sent_program(modules: Mapping[str, str], function: str, *arguments: Any) -> bytes:
    """What `BOOTSTRAP` reads.

    Args:
        modules: names in the container, in the order in which they import each other, and files here.
        function: of the last one, called with `arguments`.
    """
    package = resources.files("agentrl_sandbox")
    parts = [package.joinpath(path).read_bytes() for path in modules.values()]
    head = repr((tuple(modules), function, arguments)).encode()
    return b"".join(b"%08d" % len(part) + part for part in (head, *parts))


def supervisor_program(settings: ContainerSettings) -> bytes:
    """The supervisor of a session."""
    cores = max(1, round(settings.cpus))
    return sent_program(_MODULES, "become_supervisor", tuple(settings.libraries), cores)


class StreamLost(Exception):
    """The stream to the container has ended or carries nonsense."""


class Container:
    """A started container and the frames to and from the supervisor in it."""

    def __init__(self, container: Any, calls: EngineCalls, frame_limit: int) -> None:
        self._container = container
        self._calls = calls
        self._frame_limit = frame_limit
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._stdout = bytearray()
        self._stderr = bytearray()
        self.first: dict[str, Any] = {}
        self.python = ""
        self.missing: list[str] = []

    @property
    def container_id(self) -> str:
        """The engine's id."""
        return str(self._container.id)

    @property
    def alive(self) -> bool:
        """False when the stream is known to have ended."""
        return not self._reader.at_eof() and not self._writer.transport.is_closing()

    @classmethod
    async def start(
        cls,
        client: docker.DockerClient,
        calls: EngineCalls,
        options: Mapping[str, Any],
        program: bytes,
        frame_limit: int,
    ) -> Container:
        """Creates, attaches, starts, and waits for the first frame, which is kept as `self.first`.

        Args:
            client: of the engine.
            calls: run off the event loop.
            options: of docker-py's `containers.create`, as `container_options` makes them.
            program: what `BOOTSTRAP` reads, see `sent_program`.
            frame_limit: bytes of the longest frame.

        Raises:
            SandboxUnavailable: the engine does not answer, or has not this image.
            SessionStartFailed: the interpreter in it did not come up.
        """
        made = await created(client, calls, options)
        self = cls(made, calls, frame_limit)
        try:
            self._reader, self._writer = await attached(client, calls, made.id, "stdin", "stdout", "stderr")
            await calls.run("start a container", made.start)
            self._writer.write(program)
            self.first, _ = await asyncio.wait_for(self.receive(), START_LIMIT_S)
            self.python, self.missing = str(self.first.get("python")), list(self.first.get("missing", ()))
        except (TimeoutError, StreamLost, OSError) as error:
            await self.remove()
            said = bytes(self._stderr).decode(errors="replace").strip()
            raise SessionStartFailed(
                f"the interpreter of a container of image {options['image']} did not come up: "
                f"{error or type(error).__name__}{': ' + said if said else ''}"
            ) from error
        except BaseException:
            await self.remove()
            raise
        return self

    async def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Sends one frame (see `inside/frames.py`). Raises `StreamLost`."""
        try:
            self._writer.write(encode_frame(header, tuple(blobs)))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise StreamLost(f"the stream to the container broke: {error}") from error

    async def receive(self) -> tuple[dict[str, Any], list[bytes]]:
        """Receives one frame. Raises `StreamLost` at the end of the stream and for what is no frame."""
        try:
            while (size := self._whole_frame()) is None:
                await self._receive_piece()
            body = bytes(self._stdout[4 : 4 + size])
            del self._stdout[: 4 + size]
            return decode_frame(body)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise StreamLost("the stream from the container ended") from error
        except (ValueError, struct.error, RecursionError) as error:
            raise StreamLost(f"a frame that cannot be read ({type(error).__name__})") from error

    def _whole_frame(self) -> int | None:
        """Length of the frame that has arrived in full, None while it has not."""
        if len(self._stdout) < 4:
            return None
        (size,) = struct.unpack_from("!I", self._stdout)
        if size > self._frame_limit:
            raise StreamLost(f"a frame of {size} bytes")
        return size if len(self._stdout) >= 4 + size else None

    async def _receive_piece(self) -> None:
        """Takes in one piece of the engine's stream: stdout is the protocol, stderr is diagnostics."""
        kind, size = struct.unpack("!BxxxI", await self._reader.readexactly(8))
        if size > self._frame_limit + 65536:
            raise StreamLost(f"a piece of {size} bytes")
        piece = await self._reader.readexactly(size)
        if kind == 1:
            self._stdout += piece
        elif kind == 2:
            self._stderr = (self._stderr + piece)[-_STDERR_KEPT:]

    def hang_up(self) -> None:
        """Ends the stream; the supervisor then kills everything and the engine removes the container."""
        if hasattr(self, "_writer"):
            self._writer.transport.abort()

    async def remove(self) -> None:
        """Kills and removes the container; no error when it is gone already."""
        self.hang_up()
        with contextlib.suppress(SandboxUnavailable):
            await self._calls.run("remove a container", remove_now, self._container)

    async def stopped(self) -> bool:
        """True when the supervisor was stopped by a signal: it cannot be waited for then."""
        try:
            listed = await self._calls.run("list processes", self._container.top, ps_args="-o pid,ppid,stat")
        except SandboxUnavailable:
            return False
        rows = listed.get("Processes") or ()
        pids = {row[0] for row in rows}
        # The supervisor is the first process; those of the program it stops itself.
        return any(row[2].startswith("T") for row in rows if row[1] not in pids)


async def created(client: docker.DockerClient, calls: EngineCalls, options: Mapping[str, Any]) -> Any:
    """A container that was made. Cancelled while the engine makes it, it is removed once it is there."""
    return await calls.run("create a container", client.containers.create, discard=remove_now, **options)


async def attached(
    client: docker.DockerClient, calls: EngineCalls, container_id: str, *streams: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The `streams` of a container ("stdin", "stdout", "stderr"), from here on."""
    wanted = {**dict.fromkeys(streams, 1), "stream": 1}
    return await opened(calls, "attach to a container", client.api.attach_socket, container_id, params=wanted)


async def opened(
    calls: EngineCalls, what: str, call: Callable[..., Any], *arguments: Any, **named: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The stream that a call of docker-py gives; closed where its caller was cancelled meanwhile."""

    def open_it() -> socket.socket:
        return _raw_socket(call(*arguments, **named))

    raw = await calls.run(what, open_it, discard=socket.socket.close)
    return await asyncio.open_connection(sock=raw)


def _raw_socket(attached: Any) -> socket.socket:
    """The socket of a stream that the engine gave, independent of docker-py's own objects."""
    inner = getattr(attached, "_sock", attached)
    if not isinstance(inner, socket.socket) or inner.__class__.__name__ == "SSLSocket":
        raise SandboxConfigError(
            "the docker backend needs an engine at a unix socket or plain TCP (tunnel the rest)"
        )
    raw = socket.socket(fileno=os.dup(inner.fileno()))
    raw.setblocking(False)
    attached.close()
    inner.close()  # the HTTP response holds it too, and would only be closed by the garbage collector
    return raw


def remove_now(container: Any) -> None:
    """Kill and remove a container; no error when it is gone already. Blocks."""
    import docker.errors

    try:
        container.remove(force=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        if error.status_code != 409:  # 409: the engine is removing it already
            raise
