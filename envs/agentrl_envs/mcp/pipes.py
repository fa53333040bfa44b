"""An MCP server as a process: one JSON message a line on its standard streams.

The package `mcp` has a transport for this too. This one reads lines of bounded length without copying what it
has of a long one again and again, and leaves out what is no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from ..processes import exit_of
from .limits import Usage, watched

__all__ = ["MOST_MB", "pipes"]

MOST_MB = 32
"""Longest line that is read; a server that writes a longer one is taken for lost."""
_GRACE_S = 2.0
"""How long a server may take to end once its standard input is closed, and again after SIGTERM."""


@asynccontextmanager
async def pipes(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: str | None,
    log: IO[bytes],
    on_bad_line: Callable[[str], None],
    usage: Usage,
) -> AsyncIterator[Any]:
    """Start a server; (messages from it, messages to it) as the package `mcp` wants its streams.

    Args:
        command: its arguments, the program first.
        environment: all variables that it has.
        folder: it is started in; None is this process's.
        log: takes its standard error.
        on_bad_line: is told what is wrong with a line that is no message; it is left out.
        usage: its limits; closed with it.

    Raises:
        OSError: it cannot be started.
    """
    program = os.path.join(folder or "", command[0]) if os.sep in command[0] else command[0]
    if shutil.which(program, path=environment.get("PATH")) is None:  # the shell would say it less well
        raise FileNotFoundError(errno.ENOENT, "no such program", command[0])
    process = await asyncio.create_subprocess_exec(
        *usage.command(command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        limit=MOST_MB << 20,
    )
    usage.pid = process.pid
    to_client, read_stream = anyio.create_memory_object_stream[Any](0)
    write_stream, from_client = anyio.create_memory_object_stream[Any](0)
    tasks = [
        asyncio.ensure_future(_read(process.stdout, to_client, on_bad_line)),
        asyncio.ensure_future(_write(process.stdin, from_client, to_client)),
    ]
    try:
        async with watched(usage):
            yield read_stream, write_stream
    finally:
        try:
            await _end(process)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
            for stream in (to_client, read_stream, write_stream, from_client):
                stream.close()
            # Its pipes, which what it started may hold open.
            process._transport.close()  # pyrefly: ignore[missing-attribute]


async def _read(stdout: Any, to_client: Any, on_bad_line: Callable[[str], None]) -> None:
    """Pass on what the server writes, line by line."""
    async with to_client:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                try:
                    line = await stdout.readuntil(b"\n")
                except asyncio.LimitOverrunError:
                    on_bad_line(f"it wrote a line of more than {MOST_MB} MB")
                    return
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    on_bad_line(f"it wrote what is no message: {line[:100]!r}")
                else:
                    await to_client.send(SessionMessage(message))


async def _write(stdin: Any, from_client: Any, to_client: Any) -> None:
    """Write what is for the server; where it no longer reads, the connection is lost."""
    async with from_client:
        try:
            async for one in from_client:
                stdin.write(one.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await stdin.drain()
        except (ConnectionError, RuntimeError):
            to_client.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let the server end by itself, then end it with its process group."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exit_of(process), _GRACE_S)
            break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
    await exit_of(process)
    # Until the event loop has been told. (`Process.wait` waits for whoever holds its pipes, too.)
    while process.returncode is None:  # noqa: ASYNC110 - asyncio has no event for it
        await asyncio.sleep(0.001)
