"""Programs that play an episode, each in a container of its own: limited, without a network but the gateway.

Stands in for `processes.Program`. Knows nothing of episodes, nor of how containers are made.
"""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentrl_sandbox.result import Ended

from .errors import EnvError, SandboxFailure

if TYPE_CHECKING:
    from agentrl_sandbox.docker.program import ContainerLimits, ProgramEnded

__all__ = ["ContainedProgram", "packed", "unpack"]


@dataclass(slots=True)
class ContainedProgram:
    """One program in a container.

    Args:
        command: its arguments, the program first, as the image has it.
        files: what its working folder has at first: paths there, and files here.
        environment: variables; a value with `url` in it gets the address by which the container reaches it.
        url: of the server that it may reach, and nothing else.
        image: any with `python3`.
        limits: what it may use.
        time_s: wall time of the program.
        left: folder that takes the files it leaves; None where nobody wants them.
        runtime: of the engine; empty is the engine's own choice.
    """

    command: Sequence[str]
    files: Mapping[str, Path]
    environment: Mapping[str, str]
    url: str
    image: str
    limits: ContainerLimits
    time_s: float
    left: Path | None = None
    runtime: str = ""

    async def run(self, text: str = "") -> Ended:
        """Start it with `text` as its standard input, and wait until it ends. Cancelled, it is killed.

        Raises:
            EnvError: it cannot be started, or used up its time.
            SandboxFailure: the engine or the container broke.
        """
        from agentrl_sandbox import SandboxError
        from agentrl_sandbox.docker.program import ContainerProgram, ProgramFailure
        from agentrl_sandbox.docker.shared_engine import shared_engine

        address = urlsplit(self.url)
        try:
            async with shared_engine() as open_engine:
                program = ContainerProgram(
                    open_engine,
                    (address.hostname or "", address.port or 80),
                    self.image,
                    self.limits,
                    self.runtime or None,
                )
                try:
                    await program.start()
                    return await self._run(program, text)
                finally:
                    await asyncio.shield(asyncio.ensure_future(program.close()))
        except ProgramFailure as error:
            raise EnvError(str(error)) from error
        except SandboxError as error:
            raise SandboxFailure(f"no container for the program {self.command[0]!r}: {error}") from error

    async def _run(self, program: Any, text: str) -> Ended:
        inside = f"http://127.0.0.1:{program.port}"
        variables = {name: value.replace(self.url, inside) for name, value in self.environment.items()}
        files, wanted = packed(self.files), self.left is not None
        try:
            async with asyncio.timeout(self.time_s):
                ended: ProgramEnded = await program.run(
                    self.command, variables, text=text, files=files, files_back=wanted
                )
        except TimeoutError as error:
            raise EnvError(
                f"the program {self.command[0]!r} did not end within {self.time_s:g} s and was killed with "
                "its container (raise the setting time_s if this is how long it takes)"
            ) from error
        if self.left is not None:
            unpack(ended.files, self.left, self.limits.file_mb << 20)
        if ended.memory and ended.code:
            said = f"the container was out of its {self.limits.memory_mb} MB of memory\n{ended.err}"
            return replace(ended, err=said)
        return ended


def packed(files: Mapping[str, Path]) -> bytes:
    """A tar archive of files, by their paths in it; a folder is taken with all it has.

    Raises:
        EnvError: one cannot be read.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files.items():
            try:
                archive.add(path, name, filter=_plain)
            except OSError as error:
                raise EnvError(f"{path} cannot be sent into a container: {error}") from error
    return out.getvalue()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file as everybody may read it; sockets and devices are left out."""
    if not (info.isreg() or info.isdir() or info.issym()):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode |= 0o755 if info.isdir() else 0o644
    return info


def unpack(archive: bytes, folder: Path, most: int) -> None:
    """Write the files of an archive that nobody trusts: regular ones below `folder`, `most` bytes in all."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            path = PurePosixPath(os.path.normpath(member.name))
            if not member.isreg() or path.is_absolute() or ".." in path.parts:
                continue
            most -= member.size
            content = opened.extractfile(member)
            if most < 0 or content is None:
                break
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content.read())
