"""One sandbox server as its client sees it: requests, retries under the same request id, load and health.

Knows HTTP; knows nothing of sessions or of how a server is chosen among several.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..crowd import while_waiting
from ..errors import SandboxError

if TYPE_CHECKING:
    import aiohttp

# Waits before asking a server again that could not be reached: enough for a dropped connection, not for a
# lost host.
RETRY_WAITS_S = (0.05, 0.2, 1.0)
LONGEST_DOWN_S = 30.0


class ServerLost(SandboxError):
    """A server could not be reached, fell silent, or talks nonsense."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the sandbox server {url} is lost: {reason}")


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and JSON body; `retry_after_s` as the server advised."""

    status: int
    body: dict[str, Any]
    retry_after_s: float = 1.0

    @property
    def refusal(self) -> str | None:
        """The message of a refusal, None for a success."""
        error = self.body.get("error")
        if isinstance(error, dict):
            return str(error.get("message", "no reason given"))
        return None if self.status < 300 else f"HTTP status {self.status}"

    @property
    def code(self) -> str:
        """The code of a refusal, "" for a success. A refusal may come late, inside a reply of status 200."""
        error = self.body.get("error")
        return str(error.get("code", "")) if isinstance(error, dict) else ""


@dataclass(slots=True)
class Patience:
    """How long a caller waits in all for a server that says it is busy."""

    limit_s: float
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.limit_s

    async def wait(self, advised_s: float) -> bool:
        """Waits about as long as advised; false, at once, when the patience is over."""
        left = self._until - time.monotonic()
        if left <= 0:
            return False
        pause = while_waiting.get()
        with pause() if pause else contextlib.nullcontext():
            await asyncio.sleep(min(left, advised_s * random.uniform(0.8, 1.2)))
        return True


class Endpoint:
    """One server. `connect_s` and `silence_s`: limits on connecting and on a connection without a byte."""

    def __init__(self, url: str, http: aiohttp.ClientSession, *, connect_s: float, silence_s: float) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._connect_s = connect_s
        self._silence_s = silence_s
        self.sessions = 0
        self.max_sessions = 1
        self.lease_s = 60.0
        self.wait_limit_s = 60.0
        self.level = 0
        self.description = ""
        self.draining = False
        self._failures = 0
        self._down_until = 0.0

    @property
    def load(self) -> float:
        """Share of the server's sessions that are taken, as far as known."""
        return self.sessions / self.max_sessions

    @property
    def down(self) -> bool:
        """True while the server was lost a moment ago or says that it is shutting down."""
        return time.monotonic() < self._down_until or self.draining

    def update(self, status: dict[str, Any]) -> None:
        """Takes in what the server says of itself."""
        try:
            self.sessions = int(status["sessions"])
            self.max_sessions = max(1, int(status["max_sessions"]))
            self.lease_s = float(status["lease_s"])
            self.wait_limit_s = float(status["wait_limit_s"])
            self.level = int(status["level"])
            self.description = str(status["description"])
            self.draining = bool(status["draining"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerLost(self.url, f"its status has no good {error}; is it a sandbox server?") from error

    async def refresh(self) -> None:
        """Asks the server for its status. Raises `ServerLost`, or `SandboxError` when it refuses."""
        reply = await self.ask("GET", "/v1/status", None, limit_s=self._connect_s + self._silence_s)
        if reply.refusal is not None:
            raise SandboxError(f"the sandbox server {self.url} refuses: {reply.refusal}")
        self.update(reply.body)

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None, *, limit_s: float, retry: bool = True
    ) -> Reply:
        """Sends a request, again when the connection breaks: `body` must carry a request id if that matters.

        Raises `ServerLost` when the server cannot be reached after all tries.
        """
        for wait_s in (*RETRY_WAITS_S, None) if retry else (None,):
            try:
                reply = await self._send(method, path, body, limit_s)
            except ServerLost:
                if wait_s is None:
                    self._mark_down()
                    raise
                await asyncio.sleep(wait_s)
            else:
                self._failures = 0
                self._down_until = 0.0
                return reply
        raise AssertionError("the last try returns or raises")

    def _mark_down(self) -> None:
        self._failures += 1
        self._down_until = time.monotonic() + min(LONGEST_DOWN_S, 0.5 * 2**self._failures)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None, limit_s: float) -> Reply:
        import aiohttp

        # From memory, but as a stream: aiohttp warns of long bodies that are not sent piecewise.
        data = None if body is None else io.BytesIO(json.dumps(body).encode())
        headers = {} if body is None else {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(
            total=limit_s, sock_connect=self._connect_s, sock_read=self._silence_s
        )
        try:
            async with self._http.request(
                method,
                self.url + path,
                data=data,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                text = await response.read()
        except TimeoutError as error:
            raise ServerLost(self.url, f"{method} {path} timed out ({type(error).__name__})") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerLost(self.url, f"{type(error).__name__}: {error}") from error
        return self._parse(response, text)

    def _parse(self, response: aiohttp.ClientResponse, text: bytes) -> Reply:
        try:
            body = json.loads(text)
            if not isinstance(body, dict):
                raise ValueError("not an object")
            retry_after_s = float(response.headers.get("Retry-After", "1"))
        except (ValueError, RecursionError) as error:
            if response.status in (502, 503, 504):
                raise ServerLost(
                    self.url, f"HTTP status {response.status} from something in between"
                ) from error
            raise ServerLost(
                self.url, f"the reply (status {response.status}) is not what was agreed"
            ) from error
        return Reply(response.status, body, max(0.05, min(60.0, retry_after_s)))
