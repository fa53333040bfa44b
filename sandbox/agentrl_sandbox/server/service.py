"""A sandbox of any backend behind HTTP: sessions with leases, a bounded queue, retries that never run twice.

`serve(...)` runs until SIGTERM or SIGINT; `SandboxServer` is the same for a program that owns the event loop.
Knows nothing of which backend it serves, and nothing of what the programs are for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import math
import os
import signal
import sys
from typing import Any

from ..errors import SandboxClosed, SandboxConfigError, SandboxError, SessionClosed
from ..interface import Sandbox, Session
from ..limits import Limits, highest_limits
from ..opening import open_sandbox
from ..remote.messages import PROTOCOL, BadMessage, limits_above, limits_within, result_to_json
from ..result import Result, Status
from .metrics import Metrics
from .queue import QueueFull, RunQueue
from .replies import ReplyStore
from .sessions import SessionTable, UnknownSession

log = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(lambda record: not _is_about_a_bad_request(record))

DEFAULT_PORT = 8770
TOKEN_VARIABLE = "AGENTRL_SANDBOX_TOKEN"


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where a server listens and how much it takes on. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 takes a free port."""
    token: str | None = dataclasses.field(default=None, repr=False)
    """What clients must present; needed unless the address is a loopback one."""
    max_sessions: int = 256
    """Live sessions; more are refused with 429."""
    max_running: int = 0
    """Programs that run at once; 0 for two per core."""
    max_waiting: int = 256
    """Programs that wait for their turn; more are refused with 429."""
    wait_limit_s: float = 60.0
    """Longest wait for a turn."""
    lease_s: float = 300.0
    """How long a session may stand unused, not even renewed by its client, before it is closed."""
    client_limit_s: float = 60.0
    """Longest wait for a client: to send a request, to take a reply, to say anything at all."""
    reply_keep_s: float = 120.0
    """How long replies are kept for a client that asks again."""
    reply_mb: int = 64
    """MiB of replies that are kept; a retry that comes too late for its reply is refused, never run again."""
    ceiling: Limits | None = None
    """The most a client may ask for."""
    drain_s: float = 30.0
    """How long a shutdown waits for the sessions under way."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise SandboxConfigError(f"port {self.port} is outside 0 .. 65535")
        for name in ("wait_limit_s", "lease_s", "client_limit_s", "reply_keep_s", "reply_mb"):
            if not 0 < getattr(self, name) < math.inf:
                raise SandboxConfigError(f"{name} must be positive and finite")
        for name in ("max_running", "max_waiting", "drain_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SandboxConfigError(f"{name} must not be negative")
        if self.max_sessions < 1:
            raise SandboxConfigError("max_sessions must be at least 1")
        if not self.token and not _is_loopback(self.host):
            raise SandboxConfigError(
                f"a server that listens on {self.host} can be reached from other machines and needs a token: "
                f"set {TOKEN_VARIABLE} or pass token=...; or listen on 127.0.0.1"
            )


def _is_about_a_bad_request(record: logging.LogRecord) -> bool:
    """What anybody can send without a token is refused, and fills no log with tracebacks."""
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.web import RequestPayloadError

    return bool(record.exc_info) and isinstance(record.exc_info[1], HttpProcessingError | RequestPayloadError)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SandboxServer:
    """Serves `sandbox`, which it starts and closes. `await start()` gives the URL; `await stop()` drains."""

    def __init__(
        self, sandbox: Sandbox, settings: ServerSettings | None = None, limits: Limits | None = None
    ) -> None:
        self.settings = settings or ServerSettings()
        self._limits = limits
        """Of sessions that are opened without any; None: those of the sandbox."""
        s = self.settings
        self.sandbox = sandbox
        self.metrics = Metrics()
        self.sessions = SessionTable(lease_s=s.lease_s)
        if s.ceiling is not None:
            self._limits = limits_within(limits or Limits(), s.ceiling)
        self.replies = ReplyStore(keep_s=s.reply_keep_s, capacity=s.reply_mb << 20)
        self.queue = RunQueue(
            running=s.max_running or 2 * (os.cpu_count() or 1),
            waiting=s.max_waiting,
            wait_limit_s=s.wait_limit_s,
        )
        self.longest_run_s = s.ceiling.time_s if s.ceiling else 86_400.0
        self.draining = False
        self.url = ""
        self._opening = 0
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
                while len(self.sessions) or self._opening:  # noqa: ASYNC110 - two counts, polled once in a life
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

    async def open_session(
        self, limits: Limits | None, *, stateless: bool, seed: int | None
    ) -> dict[str, Any]:
        """Opens a session. Raises `Draining`, `QueueFull` (all taken), `BadMessage`, `SandboxError`."""
        from .routes import Draining

        if self.draining:
            raise Draining
        if limits is not None and self.settings.ceiling is not None:
            above = limits_above(limits, self.settings.ceiling)
            if above:
                raise BadMessage("; ".join(above))
        if len(self.sessions) + self._opening >= self.settings.max_sessions:
            raise QueueFull(
                f"all {self.settings.max_sessions} sessions are taken", self.queue.retry_after_s()
            )
        self._opening += 1
        try:
            session = await self.sandbox.open(limits or self._limits, stateless=stateless, seed=seed)
        finally:
            self._opening -= 1
        self.metrics.sessions_opened += 1
        return {"session_id": self.sessions.add(session), "lease_s": self.settings.lease_s}

    async def run_code(
        self, session_id: str, code: str, *, timeout: float | None, stdin: str
    ) -> dict[str, Any]:
        """Runs code when its turn comes. Raises `UnknownSession` and `QueueFull`; then nothing was run."""
        async with (
            self.sessions.use(session_id) as leased,
            self.queue.turn(leased.one_at_a_time) as queue_s,
        ):
            try:
                result = await leased.session.run(code, timeout, stdin=stdin)
            except (SessionClosed, SandboxClosed) as error:
                raise UnknownSession(session_id) from error
            except Exception as error:
                # The code may have run: this is a reply, so that a retry does not run it again.
                log.exception("the backend failed in a run")
                reason = f"the sandbox server failed: {type(error).__name__}: {error}"
                result = Result(Status.INFRASTRUCTURE_FAILURE, error=reason)
        self.metrics.count_run(result.status.value, result.wall_s, queue_s)
        return {"result": result_to_json(result), "queue_s": queue_s}

    def status(self) -> dict[str, Any]:
        """What a client needs to choose a server and to size its requests."""
        return {
            "protocol": PROTOCOL,
            "level": int(self.sandbox.level),
            "description": self.sandbox.describe(),
            "draining": self.draining,
            "lease_s": self.settings.lease_s,
            "wait_limit_s": self.settings.wait_limit_s,
            "sessions": len(self.sessions) + self._opening,
            "max_sessions": self.settings.max_sessions,
            "running": self.queue.running,
            "waiting": self.queue.waiting,
            "max_running": self.queue.running_limit,
        }

    def metrics_text(self) -> str:
        """Counters and gauges in the Prometheus text format."""
        self.metrics.leases_expired = self.sessions.expired
        return self.metrics.text(
            {
                "sessions_live": len(self.sessions),
                "sessions_max": self.settings.max_sessions,
                "programs_running": self.queue.running,
                "programs_waiting": self.queue.waiting,
                "replies_replayed": self.replies.replays,
                "reply_bytes": self.replies.bytes,
                "draining": float(self.draining),
            }
        )


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


def ceiling_of(text: str) -> Limits:
    """`time_s=60,memory_mb=2048` as limits; what is not named is bounded by `Limits` alone.

    Raises:
        argparse.ArgumentTypeError: with the fields there are.
    """
    known, given = [f.name for f in dataclasses.fields(Limits)], {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name.strip() not in known:
            raise argparse.ArgumentTypeError(f"{name.strip()!r} is no limit; there are {', '.join(known)}")
        try:
            number = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is not of the form name=number") from None
        given[name.strip()] = int(number) if number.is_integer() else number
    try:
        return dataclasses.replace(highest_limits(), **given)
    except (SandboxConfigError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
