"""HTTP in front of a sandbox: reads requests, checks them, answers. `service.py` does what they ask for.

Bodies are JSON objects. A refusal is `{"error": {"code": ..., "message": ...}}`. The reply to a long program
is sent as spaces, one every few seconds, and then the JSON: so a client tells a slow program from a lost
server.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..errors import SandboxError
from ..remote.messages import BadMessage, field, limits_from_json
from .queue import Draining, QueueFull
from .replies import ReplyForgotten, RequestConflict
from .service import Service
from .sessions import UnknownSession

log = logging.getLogger(__name__)

KEEPALIVE_S = 5.0
OPEN_PATHS = frozenset({"/healthz"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusal(status: int, code: str, message: str, retry_after_s: int | None = None) -> web.Response:
    """A typed error as a response."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)


def refusal_of(error: BaseException) -> web.Response:
    """The response to what a request raised."""
    match error:
        case BadMessage():
            return refusal(400, "bad_request", str(error))
        case UnknownSession():
            return refusal(404, "unknown_session", f"no session {error}: it was closed or its lease ran out")
        case RequestConflict():
            return refusal(409, "request_conflict", str(error))
        case ReplyForgotten():
            return refusal(410, "reply_forgotten", str(error))
        case ClientTooSlow():
            return refusal(408, "too_slow", str(error))
        case QueueFull():
            return refusal(429, "overloaded", str(error), error.retry_after_s)
        case Draining():
            return refusal(503, "draining", "the server is shutting down", 1)
        case SandboxError():
            return refusal(503, "unavailable", str(error), 1)
        case asyncio.CancelledError():
            return refusal(410, "cancelled", "the request was cancelled")
        case _:
            log.error("a request failed", exc_info=error)
            return refusal(500, "internal", f"{type(error).__name__} (the server's log says more)")


class ClientTooSlow(Exception):
    """A body did not arrive in time."""


async def read_body(request: web.Request, limit_s: float) -> Any:
    """The JSON body. Raises `BadMessage` for anything that is not JSON, `ClientTooSlow` after `limit_s`."""
    if request.content_type != "application/json":
        # Also keeps web pages of other origins out: a browser may not send this type without asking first.
        raise BadMessage(f"the content type must be application/json, not {request.content_type}")
    try:
        async with asyncio.timeout(limit_s):
            raw = await request.read()
    except TimeoutError as error:
        raise ClientTooSlow(f"the body did not arrive within {limit_s:g} s") from error
    except web.RequestPayloadError as error:
        raise BadMessage("the body is not what its headers say") from error
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"the body is not JSON: {type(error).__name__}") from error


def request_id_of(body: Any) -> str:
    """The id under which a retry of this request is known."""
    request_id = field(body, "request_id", str)
    if not 8 <= len(request_id) <= 100:
        raise BadMessage("the field 'request_id' must have 8 to 100 characters")
    return request_id


def digest_of(path: str, body: Any) -> bytes:
    """What was asked, in 32 bytes."""
    text = f"{path}\n{json.dumps(body, sort_keys=True)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Routes:
    """The handlers of one server."""

    def __init__(self, server: Service, *, token: str | None, body_bytes: int) -> None:
        self._server = server
        self._client_limit_s = server.settings.client_limit_s
        self._token = token.encode() if token else None
        self.application = web.Application(
            middlewares=[self._answer_errors, self._check_token], client_max_size=body_bytes
        )
        self.application.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/metrics", self._metrics),
                web.get("/v1/status", self._status),
                web.post("/v1/sessions", self._open),
                web.post("/v1/sessions/{session_id}/run", self._run),
                web.post("/v1/sessions/{session_id}/cancel", self._cancel),
                web.delete("/v1/sessions/{session_id}", self._close),
                web.post("/v1/leases", self._renew),
            ]
        )

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        _hang_up_on_who_does_not_read(request, self._client_limit_s)
        try:
            return await handler(request)
        except web.HTTPException as error:
            code = (error.reason or "error").lower().replace(" ", "_")
            return self._counted(refusal(error.status, code, error.text or ""))
        except ConnectionError:
            raise  # the client has gone; there is nobody to answer
        except Exception as error:
            return self._counted(refusal_of(error))

    def _counted(self, response: web.Response) -> web.Response:
        self._server.metrics.count_rejected(str(response.status))
        return response

    @web.middleware
    async def _check_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._token is not None and request.path not in OPEN_PATHS:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            # Bytes that are no UTF-8 arrive as lone surrogates.
            presented = given.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(presented, self._token):
                return self._counted(refusal(401, "unauthorized", "a valid bearer token is required"))
        return await handler(request)

    async def _health(self, _request: web.Request) -> web.Response:
        draining = self._server.draining
        return web.json_response(
            {"status": "draining" if draining else "ok"}, status=503 if draining else 200
        )

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = self._server.metrics_text()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._server.status())

    async def _open(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, self._client_limit_s)
        limits = limits_from_json(field(body, "limits", (dict, type(None)), None))
        stateless = field(body, "stateless", bool, False)
        seed = field(body, "seed", (int, type(None)), None)

        async def work() -> dict[str, Any]:
            return await self._server.open_session(limits, stateless=stateless, seed=seed)

        return await self._once(request, body, work)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, self._client_limit_s)
        session_id = request.match_info["session_id"]
        code, stdin = field(body, "code", str), field(body, "stdin", str, "")
        timeout = field(body, "timeout", (int, float, type(None)), None)
        if timeout is not None and not 0 < timeout <= self._server.longest_run_s:
            raise BadMessage(
                f"the field 'timeout' must be above 0 and at most {self._server.longest_run_s:g}"
            )

        async def work() -> dict[str, Any]:
            return await self._server.run_code(session_id, code, timeout=timeout, stdin=stdin)

        return await self._once(request, body, work)

    async def _once(self, request: web.Request, body: Any, work: Callable[[], Any]) -> web.StreamResponse:
        async def reply() -> bytes:
            return json.dumps(await work()).encode()

        task = self._server.replies.once(request_id_of(body), digest_of(request.path, body), reply)
        return await self._answer_when_done(request, task)

    async def _answer_when_done(self, request: web.Request, task: asyncio.Task[Any]) -> web.StreamResponse:
        done, _ = await asyncio.wait({task}, timeout=KEEPALIVE_S)
        if done:
            return _response_of(task, self._counted)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while not done:
            await response.write(b" ")
            done, _ = await asyncio.wait({task}, timeout=KEEPALIVE_S)
        final = _response_of(task, self._counted)
        assert isinstance(final.body, bytes | bytearray)
        await response.write(bytes(final.body))
        await response.write_eof()
        return response

    async def _cancel(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._client_limit_s)
        return web.json_response({"cancelled": self._server.replies.cancel(request_id_of(body))})

    async def _close(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"closed": await self._server.sessions.remove(request.match_info["session_id"])}
        )

    async def _renew(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._client_limit_s)
        session_ids = field(body, "session_ids", list)
        if not all(isinstance(session_id, str) for session_id in session_ids):
            raise BadMessage("the field 'session_ids' must be a list of strings")
        return web.json_response(
            self._server.status() | {"unknown": self._server.sessions.renew(session_ids)}
        )


def _hang_up_on_who_does_not_read(request: web.Request, limit_s: float) -> None:
    """The kernel ends a connection whose other end takes nothing of a reply for `limit_s`."""
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limit_s * 1000))


def _response_of(task: asyncio.Task[Any], counted: Callable[[web.Response], web.Response]) -> web.Response:
    if task.cancelled():
        return counted(refusal_of(asyncio.CancelledError()))
    error = task.exception()
    if error is not None:
        return counted(refusal_of(error))
    return web.Response(body=task.result(), content_type="application/json")
