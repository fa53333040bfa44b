"""One connection to an MCP server, over the server's standard streams or over HTTP.

The package `mcp` speaks the protocol. Here each connection has a task of its own, which opens and closes it:
whoever uses it may be cancelled at any moment. What goes wrong is a ServerFailure that names the server, and
says what it wrote last. Knows nothing of episodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
import ssl
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any, TypeVar

from ..errors import EnvError, ServerFailure
from ..processes import MARK, end_of, inherited, kill_marked
from ..program import filled
from ..raised import error_text
from ..secret_text import filled_text, masked

try:
    import httpx2
    from mcp import Client, MCPError
    from mcp.client.streamable_http import streamable_http_client
    from mcp.types import REQUEST_TIMEOUT

    from .limits import Allowance, Usage
    from .pipes import pipes
except ModuleNotFoundError:
    raise
except ImportError as error:
    raise EnvError(
        f"the installed package mcp is too old or too new ({error}): pip install 'agentrl[mcp]'"
    ) from error

__all__ = ["McpSession", "Server", "Timeout", "Tool", "apart", "changes"]

T = TypeVar("T")
PING_S = 5.0
"""Longest wait for a server to say that it is there, after a call went past its limit."""
_CLOSE_S = 8.0
_MOST_PAGES = 50


class Timeout(Exception):
    """A call did not end within its limit, and the server is there."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as a server describes it."""

    name: str
    description: str
    schema: Mapping[str, Any]
    read_only: bool


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how it is started.

    Args:
        where: a command, or the URL of an endpoint (streamable HTTP).
        variables: of the process's environment, beside a few of this process.
        headers: of every request over HTTP.
        folder: in which the process is started; empty is this process's.
        start_s: within which it must have told its tools.
        memory_mb: of its process and all that it starts; 0 sets no limit.
        cpu_s: CPU time of all of them, as long as it runs; 0 sets no limit.
    """

    where: str
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    folder: str = ""
    start_s: float = 60.0
    memory_mb: int = 0
    cpu_s: float = 0.0

    @property
    def is_url(self) -> bool:
        """Whether it is reached over HTTP."""
        return self.where.startswith(("http://", "https://"))

    def address(self) -> str:
        """The URL with what its variables hold. EnvError where one is not set."""
        return filled_text(self.where)

    def arguments(self) -> list[str]:
        """The command, the program first. EnvError when it cannot be read, or a variable is not set."""
        arguments = filled(self.where, {})
        if not arguments:
            raise EnvError("no command follows mcp:")
        return arguments

    def __str__(self) -> str:
        return f"the MCP server {masked(self.where)!r}"


class McpSession:
    """A connection, open between `open` and `close`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.tools: tuple[Tool, ...] = ()
        self.unreadable = 0
        """Lines that were no message."""
        self._trouble = ""
        self._client: Any = None
        self._mark = secrets.token_hex(12)
        self._log: IO[bytes] | None = None
        self._usage: Usage | None = None
        self._stop = asyncio.Event()
        self._changed = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    @property
    def over(self) -> str:
        """Which of its limits it was over, in words; empty while it keeps them."""
        return "" if self._usage is None else self._usage.look_now()

    @property
    def ended(self) -> bool:
        """Whether the connection is lost or closed."""
        return self._ended or self._task is None or self._task.done()

    async def open(self) -> None:
        """Start or reach the server, and read which tools it has.

        Raises:
            ServerFailure: it cannot be started or reached, or does not answer within `start_s`.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = apart(self._hold(ready))
        try:
            await asyncio.wait(
                {self._task, ready}, timeout=self.server.start_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not ready.done():
                why = f"did not tell its tools within {self.server.start_s:g} s (the setting start_s)"
                raise self.failure(why if not self._task.done() else "ended before it told its tools")
            if error := ready.exception():
                raise self.failure(f"does not start: {error_text(error)}") from error
        except BaseException:
            ready.cancel()
            self._task.cancel()
            await asyncio.shield(asyncio.ensure_future(self.close()))
            raise

    async def call(self, name: str, arguments: Mapping[str, Any], limit_s: float) -> Any:
        """The result of a call (`mcp.types.CallToolResult`), an error that the tool reports among them.

        Raises:
            Timeout: it did not end within its limit.
            ServerFailure: the server is gone, hangs, or answers what cannot be read.
        """
        try:
            async with asyncio.timeout(limit_s + 1.0):
                return await self._client.call_tool(name, dict(arguments), read_timeout_seconds=limit_s)
        except TimeoutError:
            await self.expect_alive(f"the call of {name} did not end within {limit_s:g} s, and")
            raise Timeout from None
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                await self.expect_alive(f"the call of {name} did not end within {limit_s:g} s, and")
                raise Timeout from None
            if not await self._answers(PING_S):
                self._ended = True
                raise self.failure(f"is gone in a call of {name}: {error.message}") from error
            raise self.failure(f"refused a call of {name}: {error.message}") from error
        except Exception as error:
            raise self.failure(
                f"answered a call of {name} with what cannot be read: {error_text(error)}"
            ) from error

    async def expect_alive(self, what: str) -> None:
        """ServerFailure where it does not answer a ping; `what` begins the sentence."""
        if not await self._answers(PING_S):
            self._ended = True
            text = f"{what} {self.server} does not answer a ping within {PING_S:g} s either{self._said()}"
            raise ServerFailure(masked(text))

    async def listed(self) -> tuple[Tool, ...]:
        """The tools that it has now. ServerFailure where it does not say."""
        try:
            async with asyncio.timeout(self.server.start_s):
                return await self._list()
        except Exception as error:
            raise self.failure(f"does not tell its tools: {error_text(error)}") from error

    def told_of_changes(self) -> bool:
        """Whether it has announced other tools since this was asked last."""
        changed, self._changed = self._changed, False
        return changed

    async def close(self) -> None:
        """End the connection; a process of ours is ended, with all that it started. May be called twice."""
        self._ended = True
        self._stop.set()
        task = self._task
        if task is None:
            return
        await asyncio.wait({task}, timeout=_CLOSE_S)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
        if not self.server.is_url:
            await asyncio.to_thread(kill_marked, self._mark)
        if self._usage is not None:
            self._usage.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def failure(self, what: str) -> ServerFailure:
        """The error that says what the server did."""
        return ServerFailure(masked(f"{self.server} {what}{self._said()}"))

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        try:
            async with AsyncExitStack() as stack:
                self._client = await stack.enter_async_context(await self._connected(stack))
                self.tools = await self._list()
                if not ready.done():
                    ready.set_result(None)
                await self._stop.wait()
        except asyncio.CancelledError:
            if self._log is not None:
                self._log.close()  # the event loop ends, and nobody comes to close this
            raise
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
        finally:
            self._ended = True

    async def _connected(self, stack: AsyncExitStack) -> Client:
        async def heard(message: Any) -> None:
            self._changed |= "list_changed" in str(getattr(message, "method", ""))

        if self.server.is_url:
            # A server may take as long for an answer as a call may; who waits has a limit.
            limits = httpx2.Timeout(self.server.start_s, read=None)
            http = httpx2.AsyncClient(
                headers=dict(self.server.headers), timeout=limits, verify=_certificates()
            )
            await stack.enter_async_context(http)
            transport = streamable_http_client(self.server.address(), http_client=http)
        else:
            self._log = log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
            variables = {**inherited(), **dict(self.server.variables), MARK: self._mark}
            self._usage = Usage(Allowance(self.server.memory_mb, self.server.cpu_s))
            folder = self.server.folder or None
            transport = pipes(self.server.arguments(), variables, folder, log, self._note, self._usage)
        return Client(transport, message_handler=heard, cache=None)

    async def _list(self) -> tuple[Tool, ...]:
        found: list[Tool] = []
        async for one in self._listed_pages():
            hints = one.annotations
            read_only = hints is not None and hints.read_only_hint is True
            found.append(
                Tool(one.name, one.description or one.title or one.name, one.input_schema, read_only)
            )
        return tuple(found)

    async def _listed_pages(self) -> AsyncIterator[Any]:
        cursor = None
        for _ in range(_MOST_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            for one in page.tools:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return
        raise ServerFailure(f"{self.server} lists its tools on more than {_MOST_PAGES} pages")

    async def _answers(self, limit_s: float) -> bool:
        # A tool list is asked rather than a ping, which newer servers do not know.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(limit_s):
                await self._client.list_tools()
                return True
        return False

    def _said(self) -> str:
        """What was wrong with what the server wrote last, and the end of its standard error."""
        if self._log is None or self._log.closed:
            return ""
        text = end_of(self._log)
        trouble = "".join(f"; {one}" for one in (self.over, self._trouble) if one)
        return trouble + (f"; it wrote: {text}" if text else "")

    def _note(self, trouble: str) -> None:
        self.unreadable += 1
        self._trouble = trouble


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Those that the system trusts; to read them takes 50 ms."""
    return httpx2.create_ssl_context()


def apart(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task in no context of the caller: neither the end of its episode nor its cancel scopes reach it."""
    loop = asyncio.get_running_loop()
    return contextvars.Context().run(lambda: loop.create_task(coroutine))


def changes(before: Sequence[Tool], now: Sequence[Tool]) -> str:
    """How the tools of a server differ from those it had, in words; empty where those are still there."""
    present = {tool.name: tool for tool in now}
    gone = [tool.name for tool in before if tool.name not in present]
    other = [t.name for t in before if t.name in present and dict(present[t.name].schema) != dict(t.schema)]
    said = [
        f"{', '.join(names)} {what}"
        for names, what in ((gone, "gone"), (other, "with another schema"))
        if names
    ]
    return "; ".join(said)
