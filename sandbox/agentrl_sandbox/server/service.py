"""The service of a sandbox server: sessions with leases, a bounded queue, retries that never run twice.

Knows nothing of which backend it serves, and nothing of what the programs are for.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import logging
import math
import os
from typing import Any

from ..errors import SandboxClosed, SandboxConfigError, SessionClosed
from ..interface import Sandbox
from ..limits import Limits, highest_limits
from ..remote.messages import PROTOCOL, BadMessage, limits_above, limits_within, result_to_json
from ..result import Result, Status
from .metrics import Metrics
from .queue import Draining, QueueFull, RunQueue
from .replies import ReplyStore
from .sessions import SessionTable, UnknownSession

log = logging.getLogger(__name__)
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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Service:
    """The sessions, the queue and the replies of one sandbox: all that a server does but HTTP."""

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
        self.opening = 0

    async def open_session(
        self, limits: Limits | None, *, stateless: bool, seed: int | None
    ) -> dict[str, Any]:
        """Opens a session. Raises `Draining`, `QueueFull` (all taken), `BadMessage`, `SandboxError`."""
        if self.draining:
            raise Draining
        if limits is not None and self.settings.ceiling is not None:
            above = limits_above(limits, self.settings.ceiling)
            if above:
                raise BadMessage("; ".join(above))
        if len(self.sessions) + self.opening >= self.settings.max_sessions:
            raise QueueFull(
                f"all {self.settings.max_sessions} sessions are taken", self.queue.retry_after_s()
            )
        self.opening += 1
        try:
            session = await self.sandbox.open(limits or self._limits, stateless=stateless, seed=seed)
        finally:
            self.opening -= 1
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
            "sessions": len(self.sessions) + self.opening,
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
