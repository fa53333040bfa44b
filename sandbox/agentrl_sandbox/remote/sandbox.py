"""The `Sandbox` interface over HTTP: sessions on one or several sandbox servers.

A session stays with the server that opened it. A lost server is an infrastructure failure (or
`SandboxUnavailable` from `open`), never an error of the program. Knows nothing of how the servers isolate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

from ..errors import (
    PoolExhausted,
    SandboxClosed,
    SandboxConfigError,
    SandboxError,
    SandboxUnavailable,
    SessionClosed,
)
from ..interface import Sandbox, Session
from ..level import Level
from ..limits import Limits
from ..result import Result, Status
from .client import Endpoint, Patience, Reply, ServerLost
from .messages import BadMessage, limits_to_json, result_from_json

log = logging.getLogger(__name__)

CLOSE_LIMIT_S = 10.0
# Beyond the program's own limits, what a server may need to start, interrupt, kill and answer.
ANSWER_SLACK_S = 60.0


class _SessionLost(SandboxError):
    """The server no longer knows the session."""


class RemoteSession(Session):
    """A session on one server; made by `RemoteSandbox.open`."""

    def __init__(self, pool: RemoteSandbox, limits: Limits, *, stateless: bool, seed: int | None) -> None:
        self._pool = pool
        self._limits = limits
        self._options: dict[str, Any] = {"stateless": stateless, "seed": seed}
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self.endpoint: Endpoint | None = None
        self.session_id: str | None = None

    async def connect(self) -> None:
        """Opens the session on the least loaded server that takes it."""
        body = {"limits": limits_to_json(self._limits), **self._options}
        self.endpoint, self.session_id = await self._pool.place(body)

    async def run(self, code: str, timeout: float | None = None, *, stdin: str = "") -> Result:
        """As `Session.run`. What goes wrong between here and the program is an infrastructure failure."""
        seconds = None if timeout is None else self._limits.seconds(timeout)
        async with self._one_at_a_time:
            if self._closed:
                raise SessionClosed("the session was closed")
            try:
                if self.session_id is None:
                    await self.connect()
                return await self._run(code, seconds, stdin)
            except (ServerLost, _SessionLost) as error:
                self.forget()
                return Result(Status.INFRASTRUCTURE_FAILURE, error=str(error), session_alive=False)
            except SandboxError as error:
                return Result(
                    Status.INFRASTRUCTURE_FAILURE, error=str(error), session_alive=self.session_id is not None
                )

    async def _run(self, code: str, timeout: float | None, stdin: str) -> Result:
        assert self.endpoint is not None
        request_id = uuid.uuid4().hex
        body = {"request_id": request_id, "code": code, "timeout": timeout, "stdin": stdin}
        program_s = 10 * (timeout or self._limits.time_s) + self._limits.grace_s
        limit_s = self.endpoint.wait_limit_s + program_s + ANSWER_SLACK_S
        patience = Patience(self._pool.patience_s)
        try:
            while True:
                reply = await self.endpoint.ask(
                    "POST", f"/v1/sessions/{self.session_id}/run", body, limit_s=limit_s
                )
                if reply.status != 429 and reply.code != "overloaded":
                    return self._result(reply)
                if not await patience.wait(reply.retry_after_s):
                    raise PoolExhausted(
                        f"the sandbox server {self.endpoint.url} was overloaded "
                        f"for {self._pool.patience_s:g} s ({reply.refusal})"
                    )
        except asyncio.CancelledError:
            path = f"/v1/sessions/{self.session_id}/cancel"
            self._pool.in_background(self.endpoint, "POST", path, {"request_id": request_id})
            raise

    def _result(self, reply: Reply) -> Result:
        assert self.endpoint is not None
        if reply.status == 404 or reply.code == "unknown_session":
            raise _SessionLost(f"the sandbox server {self.endpoint.url} lost the session: {reply.refusal}")
        if reply.status == 413:
            return Result(
                Status.ERROR, error=f"the source is too long for the sandbox server ({reply.refusal})"
            )
        if reply.refusal is not None:
            raise SandboxError(f"the sandbox server {self.endpoint.url} refused the run: {reply.refusal}")
        try:
            return result_from_json(reply.body.get("result"))
        except BadMessage as error:
            raise ServerLost(self.endpoint.url, f"its result is not what was agreed: {error}") from error

    def forget(self) -> None:
        """Gives the session up as lost; the next run opens another."""
        if self.endpoint is not None and self.session_id is not None:
            self.endpoint.sessions = max(0, self.endpoint.sessions - 1)
        self.session_id = None

    async def close(self) -> None:
        """Closes the session on its server; if that cannot be reached, the lease ends it."""
        if self._closed:
            return
        self._closed = True
        self._pool.sessions.discard(self)
        endpoint, session_id = self.endpoint, self.session_id
        self.forget()
        if endpoint is not None and session_id is not None:
            try:
                await endpoint.ask(
                    "DELETE",
                    f"/v1/sessions/{session_id}",
                    None,
                    limit_s=CLOSE_LIMIT_S,
                    retry=not endpoint.down,
                )
            except ServerLost as error:
                log.warning("closing a session: %s; its lease will end it", error)


class RemoteSandbox(Sandbox):
    """Sessions on the servers at `urls` (a sequence, or one text with commas).

    Args:
        token: presented to every server; defaults to the variable AGENTRL_SANDBOX_TOKEN. patience_s: how long
        a full server, or a full pool of servers, is waited for. connect_s: limit on connecting. silence_s:
        limit on a connection without a byte; a server that runs a long
            program sends a byte every 5 s.
    """

    def __init__(
        self,
        *,
        urls: str | Sequence[str] = (),
        token: str | None = None,
        limits: Limits | None = None,
        min_level: Level | None = None,
        allow_unsafe: bool = False,
        patience_s: float = 120.0,
        connect_s: float = 5.0,
        silence_s: float = 30.0,
    ) -> None:
        listed = [u.strip() for u in urls.split(",")] if isinstance(urls, str) else list(urls)
        self._urls = tuple(dict.fromkeys(u for u in listed if u))
        if not self._urls:
            raise SandboxConfigError("the remote sandbox needs urls, for example urls='http://10.0.0.5:8770'")
        for url in self._urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
                raise SandboxConfigError(f"{url!r} is not the URL of a sandbox server (http://host:port)")
        for name, value in (("patience_s", patience_s), ("connect_s", connect_s), ("silence_s", silence_s)):
            if value <= 0:
                raise SandboxConfigError(f"{name} must be positive, not {value}")
        self._token = token or os.environ.get("AGENTRL_SANDBOX_TOKEN") or None
        self._limits = limits or Limits()
        self._min_level = min_level
        self._allow_unsafe = allow_unsafe
        self.patience_s = patience_s
        self._connect_s = connect_s
        self._silence_s = silence_s
        self.sessions: set[RemoteSession] = set()
        self._endpoints: list[Endpoint] = []
        self._http: Any = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._heart: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Asks every server for its state; one that answers is enough."""
        async with self._starting:
            if self._closed:
                raise SandboxClosed("the sandbox was closed")
            if self._heart is not None:
                return
            import aiohttp

            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            self._http = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))
            try:
                await self._find_servers()
            except BaseException:
                await self._http.close()
                raise
            self._heart = asyncio.create_task(self._beat())

    async def _find_servers(self) -> None:
        settings = {"connect_s": self._connect_s, "silence_s": self._silence_s}
        self._endpoints = [Endpoint(url, self._http, **settings) for url in self._urls]
        answers = await asyncio.gather(*(e.refresh() for e in self._endpoints), return_exceptions=True)
        reasons = []
        for answer in answers:
            if isinstance(answer, SandboxError):
                log.warning("%s", answer)
                reasons.append(str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        if len(reasons) == len(answers):
            raise SandboxUnavailable("no sandbox server can be used: " + "; ".join(reasons))
        known = [e for e, answer in zip(self._endpoints, answers, strict=True) if answer is None]
        self.level = Level(min(e.level for e in known))
        for endpoint in known:
            self._check_level(endpoint)

    async def use_servers(self, urls: Sequence[str]) -> None:
        """Let the pool be these servers from now on; sessions on others are lost.

        Raises:
            SandboxError: a new one does not answer, or offers less isolation than was asked for.
        """
        await self.start()
        known = {endpoint.url: endpoint for endpoint in self._endpoints}
        settings = {"connect_s": self._connect_s, "silence_s": self._silence_s}
        for url in [one for one in urls if one not in known]:
            endpoint = Endpoint(url, self._http, **settings)
            await endpoint.refresh()
            self._check_level(endpoint)
            known[url] = endpoint
        self._endpoints = [known[url] for url in urls]

    def _check_level(self, endpoint: Endpoint) -> None:
        level = Level(endpoint.level)
        if level is Level.UNSAFE and not self._allow_unsafe:
            raise SandboxUnavailable(
                f"{endpoint.url} runs programs without isolation; pass allow_unsafe=True to use it"
            )
        if self._min_level is not None and level < self._min_level:
            raise SandboxUnavailable(
                f"{endpoint.url} offers level {level.name.lower()}, "
                f"below the {self._min_level.name.lower()} asked for ({endpoint.description}); "
                "on its machine: agentrl sandbox doctor"
            )

    async def open(
        self, limits: Limits | None = None, *, stateless: bool = False, seed: int | None = None
    ) -> RemoteSession:
        """As `Sandbox.open`. `SandboxUnavailable`: no server answers; `PoolExhausted`: all are full."""
        if self._closed:
            raise SandboxClosed("the sandbox was closed")
        await self.start()
        session = RemoteSession(self, limits or self._limits, stateless=stateless, seed=seed)
        await session.connect()
        self.sessions.add(session)
        return session

    async def place(self, body: dict[str, Any]) -> tuple[Endpoint, str]:
        """Opens a session on the least loaded server that takes it; the server and the session's id."""
        patience = Patience(self.patience_s)
        while True:
            lost, full = [], []
            for endpoint in self._by_load():
                try:
                    placed = await self._place_on(endpoint, body)
                except ServerLost as error:
                    lost.append(str(error))
                    continue
                if isinstance(placed, str):
                    return endpoint, placed
                full.append(placed)
            if not full:
                raise SandboxUnavailable("no sandbox server can be reached: " + "; ".join(lost))
            if not await patience.wait(min(reply.retry_after_s for reply in full)):
                raise PoolExhausted(
                    f"no sandbox server had a session free for {self.patience_s:g} s ({full[0].refusal})"
                )

    def _by_load(self) -> list[Endpoint]:
        # Lost and draining servers come last: when no other is left they are asked all the same.
        return sorted(self._endpoints, key=lambda e: (e.down, e.load, random.random()))

    async def _place_on(self, endpoint: Endpoint, body: dict[str, Any]) -> str | Reply:
        """The session's id, or the reply of a full server. Raises `ServerLost`, `SandboxUnavailable`."""
        message = body | {"request_id": uuid.uuid4().hex}
        reply = await endpoint.ask(
            "POST",
            "/v1/sessions",
            message,
            limit_s=endpoint.wait_limit_s + ANSWER_SLACK_S,
            retry=not endpoint.down,
        )
        if reply.refusal is None:
            endpoint.sessions += 1
            return str(reply.body["session_id"])
        if reply.status == 429 or reply.code == "overloaded":
            return reply
        if reply.code in ("draining", "unavailable"):
            endpoint.draining = reply.code == "draining"
            raise ServerLost(endpoint.url, str(reply.refusal))
        raise SandboxUnavailable(
            f"the sandbox server {endpoint.url} refuses to open a session: {reply.refusal}"
        )

    async def _beat(self) -> None:
        """Renews the leases of live sessions and learns the servers' load."""
        while True:
            await asyncio.sleep(min(e.lease_s for e in self._endpoints) / 3)
            await asyncio.gather(*(self._renew(endpoint) for endpoint in self._endpoints))

    async def _renew(self, endpoint: Endpoint) -> None:
        mine = {s.session_id: s for s in self.sessions if s.endpoint is endpoint and s.session_id is not None}
        try:
            reply = await endpoint.ask(
                "POST", "/v1/leases", {"session_ids": list(mine)}, limit_s=self._silence_s, retry=False
            )
            if reply.refusal is not None:
                raise ServerLost(endpoint.url, reply.refusal)
            endpoint.update(reply.body)
        except ServerLost as error:
            # The next call on a session finds out for itself; a lease spans three beats.
            log.warning("%s", error)

    def in_background(self, endpoint: Endpoint, method: str, path: str, body: dict[str, Any]) -> None:
        """Sends a request that nobody waits for."""

        async def send() -> None:
            with contextlib.suppress(ServerLost):
                await endpoint.ask(method, path, body, limit_s=CLOSE_LIMIT_S)

        self._spawn(send())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Closes every session and the connections."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(session.close() for session in list(self.sessions)))
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, *self._background, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def describe(self) -> str:
        """One line: the servers and what they offer."""
        if not self._endpoints:
            return f"sandbox: remote, {len(self._urls)} servers, not started"
        parts = ", ".join(f"{e.url} [{e.description or 'lost'}]" for e in self._endpoints)
        return f"sandbox: remote, level {self.level.name.lower()}: {parts}"
