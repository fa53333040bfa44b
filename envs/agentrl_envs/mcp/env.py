"""`McpEnv`: the tools of an MCP server, with prompts and answers from the rows of the data.

`env.name = "mcp:COMMAND"` starts the command for each episode and speaks over its standard streams;
`env.name = "mcp:https://..."` opens a session of its own over HTTP for each. Knows nothing of how messages
look on the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

from ..errors import EnvError, ServerFailure, ToolError
from ..question import QuestionEnv
from ..secret_text import masked, with_variables
from ..threads import run_apart
from ..tools import SchemaTool, schema_tools
from .results import told
from .session import PING_S, McpSession, Server, Timeout, Tool, apart, changes

__all__ = ["McpEnv", "mcp_env"]

_LINGER_S = 10.0
"""How long a shared server is kept while no episode uses it."""


class McpEnv(QuestionEnv):
    """A server's tools. For a prompt or a reward of your own, write a subclass of `mcp_env(COMMAND)`.

    A server that dies, hangs, says what cannot be read or no longer has the tools it had is a failed episode
    and no reward. An error that a tool reports is told to the model.
    """

    max_turns = 16
    hook_timeout_s = 600.0
    tool_timeout_s = 30.0
    reads_variables = ("variables", "headers")
    server: ClassVar[str] = ""
    """The command or the URL."""
    offered: ClassVar[tuple[Tool, ...]] = ()
    """The tools that the server had when it was first asked."""

    shared: bool = False
    """One server (over HTTP: one session) for all episodes of this process, for servers that keep nothing."""
    variables: dict[str, str] = {}  # noqa: RUF012 - every instance has a copy of its own
    """Variables of the server's environment, beside `PATH`, `HOME` and a few more; `$NAME` as in headers."""
    headers: dict[str, str] = {}  # noqa: RUF012 - every instance has a copy of its own
    """Headers of requests over HTTP; `$NAME` in a value is a variable of this process's environment."""
    folder: str = ""
    """Folder in which the server is started; empty is the trainer's."""
    only: tuple[str, ...] = ()
    """Names of the tools that are offered; empty offers all."""
    start_s: float = 60.0
    """Within which a server must have told its tools."""
    result_kb: int = 256
    """Longest result that is kept of a call, in thousands of characters; the rest is dropped, and counted."""
    memory_mb: int = 4096
    """Memory of a server that is started, and of all that it starts: with more it is killed. 0: no limit."""
    cpu_s: float = 600.0
    """CPU time of a server that is started, with all that it starts; shared ones have no limit on it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._session: McpSession | None = None
        self._unreadable = 0
        self._was_over = False

    async def setup(self) -> None:
        """Start the server or join the shared one, and look whether its tools are still the same."""
        place = server_of(self.server, {name: getattr(self, name) for name in _OF_SERVER})
        self._session = await (_SHARED.join(place) if self.shared else _started(place))
        self._unreadable = self._session.unreadable
        self._expect_tools(self._session.tools)

    async def close(self) -> None:
        """End the server, or leave the shared one."""
        session, self._session = self._session, None
        if session is not None:
            await (_SHARED.leave(session) if self.shared else session.close())

    def _before_score(self) -> None:
        """ServerFailure where the server was over one of its limits."""
        if self._over_limit():
            raise self._session.failure("was killed")  # pyrefly: ignore[missing-attribute]

    def _over_limit(self) -> bool:
        """Whether the server was over one of its limits; counted once."""
        over = self._session is not None and bool(self._session.over)
        self._count("mcp/over_limit", int(over and not self._was_over))
        self._was_over = self._was_over or over
        return over

    async def use(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call one of the server's tools by the server's own name; text, or content parts.

        Raises:
            ToolError: the tool reports an error, or did not end within `tool_timeout_s`.
            ServerFailure: the server failed.
        """
        session = self._session
        if session is None:
            raise EnvError(f"{name} was called before setup() or after close()")
        if session.told_of_changes():
            self._expect_tools(await session.listed())
        try:
            result = await session.call(name, arguments, self.tool_timeout_s)
        except Timeout:
            self._count("mcp/timeouts")
            raise ToolError(f"{name} did not end within {self.tool_timeout_s:g} s") from None
        finally:
            self._count("mcp/unreadable", session.unreadable - self._unreadable)
            self._unreadable = session.unreadable
            self._over_limit()
        if result.is_error:
            # A tool that is gone is reported like any other error, and must not be taken for the model's.
            self._expect_tools(await session.listed())
        text, cut = told(result, self.result_kb * 1000)
        self._count("mcp/cut", int(cut))
        return text

    def _count(self, name: str, by: int = 1) -> None:
        if by and self._model is not None:
            self._model.count(name, by)

    def _expect_tools(self, now: tuple[Tool, ...]) -> None:
        """ServerFailure where a tool is gone or has another schema than when the run began."""
        if difference := changes(self.offered, now):
            self._count("mcp/tools_changed")
            raise ServerFailure(f"the MCP server {masked(self.server)!r} has changed its tools: {difference}")


_OF_SERVER = ("variables", "headers", "folder", "start_s", "memory_mb", "cpu_s", "shared")
"""Settings that say how a server is reached."""


def server_of(where: str, settings: Mapping[str, Any]) -> Server:
    """The server of a command or a URL. EnvError for a variable that is not set."""

    def filled(kind: str, given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        what = f"of the MCP server {masked(where)!r}"
        read = {name: with_variables(value, f"the {kind} {name} {what}") for name, value in given.items()}
        return tuple(sorted(read.items()))

    server = Server(
        where,
        filled("variable", settings["variables"]),
        filled("header", settings["headers"]),
        settings["folder"],
        settings["start_s"],
        settings["memory_mb"],
        0.0 if settings["shared"] else settings["cpu_s"],
    )
    server.address() if server.is_url else server.arguments()  # said now, and not as a server's failure
    return server


def mcp_env(where: str, settings: Mapping[str, Any] | None = None) -> type[McpEnv]:
    """The environment of `env.name = "mcp:COMMAND"` or `"mcp:URL"`.

    Args:
        where: the command or the URL; it is asked for its tools.
        settings: of the environment, see `McpEnv`.

    Raises:
        EnvError: the server cannot be reached, has no tools, or has one that cannot be told to a model.
    """
    return _class_of(where, json.dumps(dict(settings or {}), sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _class_of(where: str, settings_text: str) -> type[McpEnv]:
    settings = McpEnv.check_settings(json.loads(settings_text))
    given = {name: settings.get(name, getattr(McpEnv, name)) for name in McpEnv.setting_types()}
    offered = run_apart(_tools_of(server_of(where, given)))
    if missing := set(given["only"]) - {tool.name for tool in offered}:
        has = ", ".join(tool.name for tool in offered)
        raise EnvError(
            f"the MCP server {masked(where)!r} has no tool {', '.join(sorted(missing))}; "
            f"it has: {has or 'none'}"
        )
    chosen = tuple(tool for tool in offered if not given["only"] or tool.name in given["only"])
    if not chosen:
        raise EnvError(f"the MCP server {masked(where)!r} has no tools")
    # The call waits longer than the tool may take, so as to see whether the server is still there.
    limit_s = given["tool_timeout_s"] + PING_S + 5.0
    methods = schema_tools(
        f"the MCP server {masked(where)!r}",
        (
            SchemaTool(one.name, one.description, one.schema, _method(one.name), one.read_only, limit_s)
            for one in chosen
        ),
    )
    return type("McpEnv", (McpEnv,), {"server": where, "offered": chosen, "__module__": __name__, **methods})


def _method(name: str) -> Callable[..., Any]:
    async def use(self: McpEnv, **arguments: Any) -> Any:
        return await self.use(name, arguments)

    return use


async def _tools_of(server: Server) -> tuple[Tool, ...]:
    session = await _started(server)
    try:
        return session.tools
    finally:
        await session.close()


async def _started(server: Server) -> McpSession:
    session = McpSession(server)
    async with _turn():
        await session.open()
    return session


_TURNS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _turn() -> asyncio.Semaphore:
    """Servers that start at once, in one event loop: starting is what takes a processor."""
    loop = asyncio.get_running_loop()
    return _TURNS.setdefault(loop, asyncio.Semaphore(max(2, os.cpu_count() or 2)))


class _Shared:
    """Servers that many episodes use; each is ended some time after its last one."""

    def __init__(self) -> None:
        self._open: dict[tuple[asyncio.AbstractEventLoop, Server], asyncio.Task[McpSession]] = {}
        self._users: dict[int, int] = {}
        self._ends: dict[int, asyncio.TimerHandle] = {}
        """When each that nobody uses is ended."""

    async def join(self, server: Server) -> McpSession:
        """The open session of a server; it is started where there is none, or where it is lost."""
        key = asyncio.get_running_loop(), server
        task = self._open.get(key)
        if task is None or (task.done() and (task.exception() is not None or task.result().ended)):
            task = self._open[key] = apart(_started(server))
        try:
            session = await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._linger_started)  # it starts all the same, and is for others
            raise
        self._users[id(session)] = self._users.get(id(session), 0) + 1
        self._stay(session)
        return session

    async def leave(self, session: McpSession) -> None:
        """An episode is done with it."""
        left = self._users[id(session)] = self._users.get(id(session), 1) - 1
        if session.ended:
            await self._end(session)
        elif not left:
            self._linger(session)

    def _linger_started(self, task: asyncio.Task[McpSession]) -> None:
        if not task.cancelled() and task.exception() is None and not self._users.get(id(task.result())):
            self._linger(task.result())

    def _linger(self, session: McpSession) -> None:
        """End it after a while, unless somebody joins."""
        self._stay(session)
        loop = asyncio.get_running_loop()
        self._ends[id(session)] = loop.call_later(_LINGER_S, lambda: apart(self._end(session)))

    def _stay(self, session: McpSession) -> None:
        if end := self._ends.pop(id(session), None):
            end.cancel()

    async def _end(self, session: McpSession) -> None:
        if not session.ended and self._users.get(id(session)):
            return
        self._users.pop(id(session), None)
        self._stay(session)
        self._open = {
            key: task
            for key, task in self._open.items()
            if not (
                task.done() and not task.cancelled() and task.exception() is None and task.result() is session
            )
        }
        await session.close()


_SHARED = _Shared()
