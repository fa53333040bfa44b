"""A container in which commands are run one after another, over files that stay.

Other than a session's, it may be changed all over: its root can be written, and commands may run as root of
the container. It has no network unless one is named. Any image with `bash` serves. Knows nothing of what the
commands are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import secrets
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SandboxError, SandboxUnavailable
from .container import attached, created, limited, opened, remove_now
from .shared_engine import SharedEngine

__all__ = ["Done", "Workspace", "WorkspaceFailure", "WorkspaceShape", "build"]

_KILL_S = 10.0
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_CHROOT",
)  # fmt: skip
"""What root of the container may do: what package managers and servers need."""

# Process 1: lives until the host hangs up its standard input, and reaps orphans (bash does, at SIGCHLD).
_FIRST = "trap : CHLD; while IFS= read -r _ || [ $? -gt 128 ]; do :; done"

# The first line is the process group, by which a command that takes too long is killed. The last is its end:
# what it leaves running may hold the stream open, and is not waited for.
_RUN = 'echo $$; bash -c "$1" 2>&1 </dev/null; printf "\\n%s %d\\n" "$2" $?'

# What is written before the host has the stream would be lost: docker-py drops what it has read beyond the
# head of the engine's answer. So a command waits for a line.
_WAIT = "read -r _ || exit 1; "

# Several rounds: what is looked for may fork meanwhile, and what was killed is reaped a moment later.
_END_OTHERS = """for round in {1..50}; do
  left=
  for one in /proc/[0-9]*; do
    case ${one#/proc/} in 1 | $$ | $PPID) ;; *) kill -KILL ${one#/proc/} 2> /dev/null && left=1 ;; esac
  done
  [ -n "$left" ] || exit 0
  sleep 0.1
done
exit 1"""


class WorkspaceFailure(SandboxError):
    """The container was lost, or an image cannot be built; the message says which and why."""


@dataclass(frozen=True, slots=True)
class WorkspaceShape:
    """How a container is made.

    Args:
        image: any with `bash`.
        memory_mb: of all its processes.
        cpus: cores.
        processes: at once.
        network: of the engine; "none" is none.
        variables: beside those of the image.
        runtime: of the engine; None is its own choice.
    """

    image: str
    memory_mb: int = 2048
    cpus: float = 1.0
    processes: int = 512
    network: str = "none"
    variables: tuple[tuple[str, str], ...] = ()
    runtime: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a command did."""

    code: int | None
    """Exit status; None where its time was up and it was killed."""
    output: str
    """Standard output and standard error in the order in which they came, as far as they were kept."""
    cut: int = 0
    """Bytes that were left out in the middle."""


class Workspace:
    """A running container; made by `open`, removed by `close`."""

    def __init__(self, engine: SharedEngine, container: Any) -> None:
        self._engine, self._container = engine, container
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    async def open(cls, engine: SharedEngine, shape: WorkspaceShape) -> Workspace:
        """Make and start a container. SandboxError where the engine or the image does not do."""
        options = _options(shape, engine.labels())
        made = await created(engine.client, engine.calls, options)
        self = cls(engine, made)
        try:
            _, self._writer = await attached(engine.client, engine.calls, made.id, "stdin")
            await engine.calls.run(f"start a container of image {shape.image}", made.start)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.close()))
            raise
        return self

    async def run(
        self,
        command: str,
        time_s: float,
        *,
        user: str = "",
        folder: str | None = None,
        variables: Mapping[str, str] | None = None,
        most: int = 1 << 20,
    ) -> Done:
        """Run a command with bash, and wait for it; what it leaves running is not waited for.

        Args:
            command: read by bash.
            time_s: after which it is killed, with all in its process group.
            user: of the image; empty is the image's own.
            folder: it begins in; None is the image's.
            variables: beside those of the container.
            most: bytes of output that are kept, half of them from its beginning.

        Raises:
            WorkspaceFailure: the container was lost.
        """
        mark = secrets.token_hex(16)
        reader, writer = await self._execute(_RUN, [command, mark], user, folder, variables or {})
        output = _Output(mark.encode(), most)
        try:
            async with asyncio.timeout(time_s):
                while output.code is None:
                    output.take(await _piece(reader))
        except TimeoutError:
            await self._kill(output.group, user)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(self._kill(output.group, user)))
            raise
        except (asyncio.IncompleteReadError, OSError) as error:
            raise WorkspaceFailure(await self._why_lost(command)) from error
        finally:
            writer.transport.abort()
        return output.done()

    async def end_processes(self) -> None:
        """Kill everything that commands left running. WorkspaceFailure where some of it goes on."""
        if (await self.run(_END_OTHERS, _KILL_S, user="0")).code != 0:
            raise WorkspaceFailure("what runs in the container does not end")

    async def put(self, archive: bytes, folder: str) -> None:
        """Unpack a tar archive in a folder that is there. SandboxError where it cannot be."""
        await self._engine.calls.run(
            f"copy files to {folder} of a container", self._container.put_archive, folder, archive
        )

    async def read(self, path: str, most: int) -> bytes | None:
        """A regular file, `most` bytes of it; None where there is none. SandboxError where nobody answers."""
        return await self._engine.calls.run(f"read {path} of a container", _read, self._container, path, most)

    async def close(self) -> None:
        """Kill everything in it, and remove it; may be called twice."""
        if self._writer is not None:
            self._writer.transport.abort()
        with contextlib.suppress(SandboxUnavailable):
            await self._engine.calls.run("remove a container", remove_now, self._container)

    async def _execute(
        self,
        script: str,
        arguments: Sequence[str],
        user: str,
        folder: str | None,
        variables: Mapping[str, str],
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Start a script of bash in the container; its stream."""
        api = self._engine.client.api
        command = ["bash", "-c", _WAIT + script, "bash", *arguments]

        def start() -> Any:
            made = api.exec_create(
                self._container.id,
                command,
                stdin=True,
                user=user,
                workdir=folder,
                environment=dict(variables),
            )
            return api.exec_start(made["Id"], socket=True)

        reader, writer = await opened(self._engine.calls, "run a command", start)
        writer.write(b"\n")
        return reader, writer

    async def _kill(self, group: int, user: str) -> None:
        """Kill a process group, and wait until that was done."""
        if group <= 1:
            return
        with contextlib.suppress(SandboxError, OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_KILL_S):
                reader, writer = await self._execute(f"kill -KILL -- -{group}; echo", (), user, None, {})
                try:
                    await _piece(reader)
                finally:
                    writer.transport.abort()

    async def _why_lost(self, command: str) -> str:
        text = f"the container was lost while it ran {command[:200]!r}"
        with contextlib.suppress(SandboxUnavailable):
            await self._engine.calls.run("look at a container", self._container.reload)
            if self._container.status == "running":
                return f"the engine ended the command {command[:200]!r} (is there a bash in the image?)"
        return text


class _Output:
    """What a command writes, between the line of its group and the line of its end."""

    def __init__(self, mark: bytes, most: int) -> None:
        self._end, self._half = re.compile(rb"\n" + mark + rb" (\d+)\n"), most // 2
        self._spare = len(mark) + 8  # the end may come in two pieces
        self._head, self._tail, self._cut = bytearray(), bytearray(), 0
        self._begun = False
        self.group = 0
        self.code: int | None = None

    def take(self, piece: bytes) -> None:
        """The next bytes."""
        self._tail += piece
        if not self._begun and b"\n" in self._tail:
            line, _, rest = bytes(self._tail).partition(b"\n")
            self._begun, self._tail = True, bytearray(rest)
            self.group = int(line) if line.isdigit() else 0
        found = self._end.search(self._tail, max(0, len(self._tail) - len(piece) - self._spare))
        if found is not None:
            self.code = int(found[1])
            del self._tail[found.start() :]
        whole = max(0, len(self._tail) - self._spare)
        moved = max(0, min(self._half - len(self._head), whole))
        self._head += self._tail[:moved]
        del self._tail[:moved]
        self._drop()

    def _drop(self) -> None:
        spare = len(self._tail) - self._half - self._spare
        if spare > 0:
            del self._tail[:spare]
            self._cut += spare

    def done(self) -> Done:
        """The output as text."""
        note = f"\n[... {self._cut:,} bytes were left out ...]\n".encode() if self._cut else b""
        text = bytes(self._head + note + self._tail).decode(errors="replace")
        return Done(self.code, text, self._cut)


async def _piece(reader: asyncio.StreamReader) -> bytes:
    """One piece of an engine's stream, of which stdout and stderr are one here."""
    _, size = struct.unpack("!BxxxI", await reader.readexactly(8))
    return await reader.readexactly(size)


def _options(shape: WorkspaceShape, labels: Mapping[str, str]) -> dict[str, Any]:
    common = limited(
        shape.image,
        labels,
        memory_mb=shape.memory_mb,
        processes=shape.processes,
        cpus=shape.cpus,
        runtime=shape.runtime,
        entrypoint=["bash", "-c", _FIRST],
    )
    own = {"network_mode": shape.network, "cap_add": list(_CAPABILITIES)}
    return {**common, **own, "environment": dict(shape.variables)}


def _read(container: Any, path: str, most: int) -> bytes | None:
    import docker.errors

    try:
        pieces, _ = container.get_archive(path)
    except docker.errors.NotFound:
        return None
    archive = bytearray()
    for piece in pieces:
        archive += piece
        if len(archive) > most + 4096:
            break
    try:
        with tarfile.open(fileobj=io.BytesIO(bytes(archive))) as opened:
            member = opened.next()
            if member is None or not member.isreg():
                return None
            content = opened.extractfile(member)
            return b"" if content is None else content.read(most)
    except tarfile.TarError:
        return None


async def build(engine: SharedEngine, folder: str, tag: str, *, network: str, limit_s: float) -> None:
    """Build an image from a folder with a Dockerfile, unless the engine has one of that tag.

    Raises:
        WorkspaceFailure: it cannot be built; with the end of what the engine wrote.
    """
    await engine.calls.run(f"build {folder}", _build, engine, folder, tag, network, limit_s, limit_s=limit_s)


def _build(engine: SharedEngine, folder: str, tag: str, network: str, limit_s: float) -> None:
    import docker.errors

    from .engine import connect

    with contextlib.suppress(docker.errors.ImageNotFound):
        engine.client.images.get(tag)
        return
    client = connect(engine.base_url, timeout_s=limit_s)
    options: Any = {"network_mode": network} if network else {}
    try:
        client.images.build(path=folder, tag=tag, rm=True, forcerm=True, **options)
    except docker.errors.BuildError as error:
        lines = [str(line.get("stream") or line.get("error") or "") for line in error.build_log]
        said = "".join(lines).strip()[-600:]
        raise WorkspaceFailure(f"{error.msg}; the engine wrote: {said}") from error
    finally:
        client.close()
