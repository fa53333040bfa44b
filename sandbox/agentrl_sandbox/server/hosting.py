"""Hosts a sandbox over HTTP until it is told to stop.

`serve(...)` runs until SIGTERM or SIGINT; `SandboxServer` is the same for a program that owns the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
from typing import Any

from ..errors import SandboxConfigError, SandboxError
from ..interface import Sandbox, Session
from ..limits import Limits
from ..opening import open_sandbox
from .service import DEFAULT_PORT, TOKEN_VARIABLE, ServerSettings, Service, ceiling_of

log = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(lambda record: not _is_about_a_bad_request(record))


def _is_about_a_bad_request(record: logging.LogRecord) -> bool:
    """What anybody can send without a token is refused, and fills no log with tracebacks."""
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.web import RequestPayloadError

    return bool(record.exc_info) and isinstance(record.exc_info[1], HttpProcessingError | RequestPayloadError)


class SandboxServer(Service):
    """Serves `sandbox`, which it starts and closes. `await start()` gives the URL; `await stop()` drains."""

    def __init__(
        self, sandbox: Sandbox, settings: ServerSettings | None = None, limits: Limits | None = None
    ) -> None:
        super().__init__(sandbox, settings, limits)
        self.url = ""
        self._runner: Any = None
        self._reaper: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Starts the sandbox, listens, and returns the URL."""
        from aiohttp import web

        from .routes import Routes

        s = self.settings
        await self.sandbox.start()
        source_bytes = s.ceiling.source_bytes if s.ceiling else 4 << 20
        routes = Routes(self, token=s.token, body_bytes=2 * source_bytes + 65_536)
        self._runner = web.AppRunner(
            routes.application,
            access_log=None,
            logger=_http_log,
            auto_decompress=False,  # no client of ours packs a body; a small one may unpack to a large one
            shutdown_timeout=5.0,
            keepalive_timeout=s.client_limit_s,  # also for the first request of a connection
            lingering_time=min(10.0, s.client_limit_s),
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, s.host, s.port).start()
        except OSError as error:
            await self._runner.cleanup()
            await self.sandbox.close()
            raise SandboxConfigError(
                f"cannot listen on {s.host}:{s.port}: {error.strerror or error}"
            ) from error
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._reaper = asyncio.create_task(self._reap())
        return self.url

    async def stop(self) -> None:
        """Takes no new session, waits up to `drain_s` for the live ones, then closes everything."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_s):
                while len(self.sessions) or self.opening:  # noqa: ASYNC110 - two counts, polled once in a life
                    await asyncio.sleep(0.05)
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        await self.replies.close()
        await self.sessions.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.sandbox.close()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(max(0.02, self.settings.lease_s / 4))
            try:
                expired = await self.sessions.remove_expired()
            except Exception:
                log.exception("closing expired sessions failed")
                continue
            if expired:
                log.info("closed %d sessions whose lease had run out", expired)


async def serve(
    backend: str = "local",
    *,
    limits: Limits | None = None,
    min_level: str | int | None = None,
    allow_unsafe: bool = False,
    settings: dict[str, Any] | None = None,
    announce: Any = None,
    **server: Any,
) -> None:
    """Serves a sandbox until SIGTERM or SIGINT, then drains and returns.

    Args:
        backend, limits, min_level, allow_unsafe, settings: as for `open_sandbox`; settings are the backend's
        own. announce: called with the URL and the sandbox's description once it listens. server: fields of
        `ServerSettings`. The token defaults to the variable AGENTRL_SANDBOX_TOKEN.

    Raises:
        SandboxConfigError: a wrong setting, an address that cannot be had, a missing token.
        SandboxUnavailable: the backend cannot be had at the level asked for.
    """
    server.setdefault("token", os.environ.get(TOKEN_VARIABLE) or None)
    try:
        server_settings = ServerSettings(**server)
    except TypeError as error:
        known = ", ".join(f.name for f in dataclasses.fields(ServerSettings))
        raise SandboxConfigError(f"{error}; known settings of the server: {known}") from error
    settings = dict(settings or {})
    if server_settings.max_running and backend in ("local", "docker"):
        settings.setdefault("max_running", server_settings.max_running)  # one queue, the one of the server
    sandbox = open_sandbox(backend, limits=limits, min_level=min_level, allow_unsafe=allow_unsafe, **settings)
    running = SandboxServer(sandbox, server_settings, limits)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        url = await running.start()
        if announce is not None:
            announce(url, sandbox.describe())
        await stop.wait()
        await running.stop()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


FLAGS = tuple(f.name for f in dataclasses.fields(ServerSettings) if f.name != "token")
"""Settings that are flags; a token on a command line would be seen by every user of the machine."""
_ABOUT = {
    "port": "0 takes a free one",
    "max_sessions": "live sessions; more are refused",
    "max_running": "programs that run at once; 0 for two per core",
    "max_waiting": "programs that wait for their turn; more are refused",
    "wait_limit_s": "longest wait for a turn",
    "lease_s": "how long a session may stand unused",
    "client_limit_s": "longest wait for a client to send a request or to take a reply",
    "reply_keep_s": "how long replies are kept for a client that asks again",
    "reply_mb": "MiB of replies that are kept",
    "ceiling": "the most that a client may ask for, e.g. time_s=60,memory_mb=2048",
    "drain_s": "how long a shutdown waits for the sessions under way",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a server as flags; their values go to `serve`."""
    for f in dataclasses.fields(ServerSettings):
        if f.name in FLAGS:
            kind = ceiling_of if f.name == "ceiling" else type(f.default)
            flag = f"--{f.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, default=f.default, help=_ABOUT.get(f.name))


def main(arguments: list[str] | None = None) -> int:
    """`python -m agentrl_sandbox.server`: serve with every field of `ServerSettings` as a flag."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl_sandbox.server", description="Serve a sandbox over HTTP."
    )
    parser.add_argument("--backend", default="local")
    parser.add_argument("--min-level", default=None)
    add_flags(parser)
    given = vars(parser.parse_args(arguments))

    def announce(url: str, description: str) -> None:
        sys.stdout.write(f"serving {url}\n{description}\n")
        sys.stdout.flush()

    try:
        asyncio.run(serve(given.pop("backend"), min_level=given.pop("min_level"), announce=announce, **given))
    except SandboxError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


__all__ = ["DEFAULT_PORT", "SandboxServer", "ServerSettings", "Session", "main", "serve"]

if __name__ == "__main__":
    raise SystemExit(main())
