"""Programs that play an episode: started in a process group, bounded, and ended with all they started.

Limits are the kernel's (`ulimit`): CPU time and memory of each process, and the size of files. They keep an
honest program from harming the run; a hostile one belongs in a container. Knows nothing of episodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from agentrl_sandbox.result import Ended

from .errors import EnvError

__all__ = ["MARK", "Program", "end_of", "exit_of", "inherited", "kill_marked"]

MARK = "AGENTRL_PROGRAM"
"""Variable by which what a program started is found, also when it left the process group."""
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE")
_READ = 1 << 16
_HEARD_S = 5.0


@dataclass(slots=True)
class Program:
    """One program.

    Args:
        command: its arguments, the program first; no shell reads them.
        folder: it is started in.
        environment: variables, beside a few of this process; nothing else is inherited, no key among it.
        time_s: wall time.
        cpu_s: CPU time of each of its processes.
        memory_mb: address space of each of its processes; 0 sets no limit.
        output_kb: output that is kept, of each stream; what follows is read and dropped.
        file_mb: size of a file that it writes.
    """

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    time_s: float
    cpu_s: int
    memory_mb: int
    output_kb: int
    file_mb: int = 256
    _mark: str = field(default_factory=lambda: secrets.token_hex(12))
    _process: asyncio.subprocess.Process | None = None

    async def run(self, text: str = "") -> Ended:
        """Start it with `text` as its standard input, and wait until it ends. Cancelled, it is killed.

        Raises:
            EnvError: it cannot be started, or used up its time.
        """
        try:
            async with asyncio.timeout(self.time_s):
                return await self._run(text)
        except TimeoutError as error:
            raise EnvError(
                f"the program {self.command[0]!r} did not end within {self.time_s:g} s and was killed "
                "(raise the setting time_s if this is how long it takes)"
            ) from error
        finally:
            await asyncio.shield(asyncio.ensure_future(self.kill()))

    async def _run(self, text: str) -> Ended:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._limited(),
                cwd=self.folder,
                env={**inherited(), **self.environment, MARK: self._mark},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise EnvError(f"the program {self.command[0]!r} cannot be started: {error}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        most = self.output_kb << 10
        reads = [asyncio.ensure_future(_read(one, most)) for one in (process.stdout, process.stderr)]
        try:
            with contextlib.suppress(ConnectionError):  # it may end without reading
                process.stdin.write(text.encode())
                await process.stdin.drain()
            process.stdin.close()
            await exit_of(process)
            # What it started may hold its output open; it ends with the program.
            await self.kill()
            (out, more), (err, more_err) = await asyncio.gather(*reads)
            code = await process.wait()
        finally:
            for read in reads:
                read.cancel()
        return Ended(code, out, err, more or more_err)

    def _limited(self) -> list[str]:
        """The command behind a shell that sets the limits before it becomes the program."""
        memory = f"ulimit -v {self.memory_mb * 1024}; " if self.memory_mb else ""
        blocks = self.file_mb * 2048  # of 512 bytes, as POSIX has it
        script = f'ulimit -t {self.cpu_s}; ulimit -f {blocks}; ulimit -c 0; {memory}exec "$@"'
        return ["/bin/sh", "-c", script, "sh", *self.command]

    async def kill(self) -> None:
        """Kill it with all it started, and wait for it."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(kill_marked, self._mark)
        await exit_of(process)


def kill_marked(mark: str) -> int:
    """Kill all processes that have `MARK=mark` in their environment; how many there were."""
    pids = list(_marked(mark))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def inherited() -> dict[str, str]:
    """The variables of this process that a program is given; no key is among them."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


async def exit_of(process: asyncio.subprocess.Process) -> None:
    """Wait until the process itself has ended. (`Process.wait` waits for whoever holds its output, too.)"""
    with contextlib.suppress(ProcessLookupError):  # it was waited for
        handle = os.pidfd_open(process.pid)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
    # The loop hears of it from a thread, a moment later; closed before, it would call the process running.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_HEARD_S):
            while process.returncode is None:  # noqa: ASYNC110 - asyncio has no event for it
                await asyncio.sleep(0.002)


def end_of(log: IO[bytes], most: int = 600) -> str:
    """The last that a process wrote to a file, in characters."""
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), 4 * most, max(0, size - 4 * most)).decode(errors="replace").strip()
    return text[-most:]


def _marked(mark: str) -> Iterator[int]:
    """Processes that have the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes():
                    yield int(folder.name)


async def _read(stream: asyncio.StreamReader, most: int) -> tuple[str, bool]:
    """What a stream gives until it ends, `most` bytes of it, and whether there was more."""
    kept, more = bytearray(), False
    while piece := await stream.read(_READ):
        more = more or len(kept) + len(piece) > most
        kept += piece[: most - len(kept)]
    return kept.decode(errors="replace"), more
