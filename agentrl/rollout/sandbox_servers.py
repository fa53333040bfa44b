"""Sandbox servers that Ray places: one pool for the programs of all rollout workers.

A server that is lost costs the sessions on it. Another is started in its place, wherever there is room, and
every worker takes it into its pool.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from agentrl.cluster.log_records import LogRecords, Told, log_again
from agentrl.cluster.ray import SERVER, RayCluster
from agentrl.config.settings import SandboxSettings, Settings
from agentrl.errors import PolicyUnavailable
from agentrl.rollout.exchange import Answer
from agentrl.rollout.worker import answered
from agentrl.tasks.task import make_sandbox

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 20.0
"""Longest wait for a server to end its sessions."""


class SandboxHost:
    """The actor of one server.

    Args:
        settings: of the sandbox that it serves.
        token: which clients must present.
        sessions: most of them at once.
        running: most programs that run at once.
    """

    def __init__(self, settings: SandboxSettings, token: str, sessions: int, running: int) -> None:
        self._settings, self._token = settings, token
        self._most = {"max_sessions": sessions, "max_running": running, "max_waiting": sessions}
        self._records = LogRecords()
        self._server: Any = None

    async def start(self) -> Answer:
        """Start the sandbox and listen on a free port of this machine; the URL."""
        return await answered(self._start())

    async def _start(self) -> str:
        import ray

        from agentrl_sandbox.server import SandboxServer, ServerSettings

        host = ray.util.get_node_ip_address()
        settings = ServerSettings(host=host, port=0, token=self._token, drain_s=1.0, **self._most)
        self._server = SandboxServer(make_sandbox(self._settings), settings)
        return await self._server.start()

    async def serve(self) -> None:
        """Never ends: who waits for it learns when the process is gone."""
        await asyncio.Event().wait()

    async def close(self) -> list[Told]:
        """End the sessions and the sandbox; what was logged in all the time."""
        if self._server is not None:
            kind, told = await answered(self._server.stop())
            if kind != "done":
                logger.warning("it did not stop cleanly: %s", told)
        return self._records.take()


class SandboxServers:
    """The servers of a run; `start` them, and `close` them.

    Args:
        settings: of the run.
        cluster: with a place for each server.
        on_replaced: called when a server came in the place of one that was lost.
    """

    def __init__(
        self, settings: Settings, cluster: RayCluster, on_replaced: Callable[[], Awaitable[None]]
    ) -> None:
        self._settings, self._cluster, self._on_replaced = settings, cluster, on_replaced
        self.token = secrets.token_hex(16)
        self._actors: dict[int, Any] = {}
        self._urls: dict[int, str] = {}
        self._watches: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """Start every server.

        Raises:
            PolicyUnavailable: one did not start; says why.
        """
        count = self._settings.cluster.sandbox_servers
        await asyncio.gather(*map(self._begin, range(count)))
        self._watches = [asyncio.ensure_future(self._watch(index)) for index in range(count)]

    @property
    def urls(self) -> tuple[str, ...]:
        """Of the servers that are up, in their order."""
        return tuple(self._urls[index] for index in sorted(self._urls))

    def client_settings(self) -> Settings:
        """Settings of a worker, whose sandbox is a client of all servers."""
        sandbox = replace(
            self._settings.sandbox, backend="remote", urls=self.urls, libraries=(), image="", runtime=""
        )
        cluster = replace(self._settings.cluster, sandbox_servers=0)
        return replace(self._settings, sandbox=sandbox, cluster=cluster)

    async def _begin(self, index: int) -> None:
        cluster = self._settings.cluster
        at_once = (self._settings.stream.in_flight or self._settings.engine.slots) * cluster.rollout_workers
        running = math.ceil(2 * cluster.sandbox_cpus)  # as a server has it of a whole machine
        actor = self._actors[index] = self._cluster.place(
            SERVER,
            index,
            SandboxHost,
            self._settings.sandbox,
            self.token,
            at_once + 64,
            running,
            concurrency=8,
        )
        name, limit_s = f"{SERVER} {index}", cluster.start_limit_s
        kind, told = await self._cluster.ask(
            name, actor, "start", limit_s=limit_s, asked="start (cluster.start_limit_s)"
        )
        if kind != "done":
            raise PolicyUnavailable(f"{name}: {told}")
        self._urls[index] = told

    async def _watch(self, index: int) -> None:
        """Wait for the end of a server, and start another in its place; for ever."""
        name = f"{SERVER} {index}"
        while True:
            try:
                await self._cluster.ask(name, self._actors[index], "serve", limit_s=None, asked="serve")
            except PolicyUnavailable as error:
                logger.warning("%s; it is started again", error)
            self._urls.pop(index)  # workers that start meanwhile are not told of it
            await self._cluster.start_again(name, lambda: self._actors[index], lambda: self._begin(index))
            await self._on_replaced()

    async def close(self) -> None:
        """End the servers."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*map(self._end, self._actors))

    async def _end(self, index: int) -> None:
        name, actor = f"{SERVER} {index}", self._actors[index]
        if not self._cluster.headless:
            try:
                asked = "end its sessions"
                told = await self._cluster.ask(name, actor, "close", limit_s=STOP_LIMIT_S, asked=asked)
                log_again(name, told)
            except PolicyUnavailable as error:
                logger.warning("%s; it is killed", error)
        self._cluster.end(actor)
