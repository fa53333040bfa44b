"""The HTTP side of the gateway: one server for each event loop, open while an episode has a key.

A key is one episode's. Knows nothing of tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import secrets
import weakref
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from agentrl.rollout.episode_model import EpisodeModel
from agentrl.rollout.gateway import anthropic, chat, responses
from agentrl.rollout.gateway.request import MOST_BYTES, Answer, ChatRequest, Kept, Refused, dumps
from agentrl.rollout.gateway.session import Session, reward_of
from agentrl_envs.model import Access

logger = logging.getLogger(__name__)

DIALECTS: dict[str, Any] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": anthropic,
}
"""Path -> module with `read`, `whole` and `events`."""


class Gateway:
    """Serves the sessions of one event loop on a port of the loopback interface."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self._starting = asyncio.Lock()
        self.url = ""

    async def open(self, session: Session) -> None:
        """Serve one more key."""
        async with self._starting:
            self._sessions[session.key] = self._sessions[session.reward_key] = session
            if self._runner is None:
                # In a context of its own: tasks that an environment starts end with its episode.
                loop = asyncio.get_running_loop()
                await loop.create_task(self._start(), context=contextvars.Context())

    async def close(self, session: Session) -> None:
        """Forget a key; the last one stops the server."""
        async with self._starting:
            for key in (session.key, session.reward_key):
                self._sessions.pop(key, None)
            session.close()
            if not self._sessions and self._runner is not None:
                runner, self._runner = self._runner, None
                await runner.cleanup()

    async def _start(self) -> None:
        app = web.Application(client_max_size=MOST_BYTES)
        for path, dialect in DIALECTS.items():
            app.router.add_post(path, self._handler(dialect))
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/agentrl/reward", self._reward)
        # A client that hangs up cancels what is sampled for it.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    def _handler(self, dialect: Any) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            session: Session | None = None
            try:
                session = self._session(request)
                asked = read_request(dialect, await _body(request), session.kept)
                answer = await session.answer(asked)
                if dialect is responses:
                    session.kept.stored[answer.id] = [*asked.messages, _said(answer)]
            except Refused as error:
                return _refusal(dialect, error, session)
            except asyncio.CancelledError:
                if session is not None:
                    session.hung_up()
                raise
            try:
                return await _send(request, dialect, asked, answer)
            except (ConnectionError, asyncio.CancelledError):
                session.undelivered(asked, answer)
                raise

        return handle

    def _session(self, request: web.Request, *, reward: bool = False) -> Session:
        header = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        given = request.headers.get("x-api-key", "")
        # Clients that take no key of their own send a filler in the one header, and ours in the other.
        given = given if given in self._sessions else header or given
        session = self._sessions.get(given)
        if session is None:
            raise Refused(
                "unknown_key", "this API key is of no episode in flight: each ends with its episode", 401
            )
        if not secrets.compare_digest(given, session.reward_key if reward else session.key):
            kind = "the agent's key, and a reward needs the grader's" if reward else "the grader's key"
            session.speaker.count("gateway/wrong_key")
            raise Refused("wrong_key", f"this is {kind}", 403)
        return session

    async def _models(self, request: web.Request) -> web.Response:
        try:
            name = self._session(request).model or "policy"
        except Refused as error:
            return _refusal(chat, error, None)
        model = {"id": name, "object": "model", "created": 0, "owned_by": "agentrl"}
        return web.json_response({"object": "list", "data": [model]})

    async def _reward(self, request: web.Request) -> web.Response:
        session: Session | None = None
        try:
            session = self._session(request, reward=True)
            session.hand_in(reward_of(await _body(request)))
        except Refused as error:
            return _refusal(chat, error, session)
        return web.json_response({"accepted": True})


_GATEWAYS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Gateway] = weakref.WeakKeyDictionary()


@contextlib.asynccontextmanager
async def serve(speaker: EpisodeModel) -> AsyncIterator[Access]:
    """Let programs reach the model of one episode, under a key of its own, while the context is open."""
    loop = asyncio.get_running_loop()
    gateway = _GATEWAYS.get(loop)
    if gateway is None:
        gateway = _GATEWAYS[loop] = Gateway()
    session = Session(speaker)
    try:
        await gateway.open(session)
        yield Access(gateway.url, session.key, session.reward_key, session)
    finally:
        await asyncio.shield(gateway.close(session))


def read_request(dialect: Any, body: Mapping[str, Any], kept: Kept) -> ChatRequest:
    """The request, read with what earlier ones of its key left.

    Raises:
        Refused: it asks for what cannot be done, or holds values of other types than its protocol's.
    """
    try:
        return dialect.read(body, kept)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused("bad_request", f"a value is of another type than the protocol's: {error}") from error


def _said(answer: Answer) -> dict[str, Any]:
    calls = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in answer.calls
    ]
    return {"role": "assistant", "content": answer.text, **({"tool_calls": calls} if calls else {})}


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.read())
    except web.HTTPRequestEntityTooLarge as error:
        raise Refused("body_too_long", f"the body of a request may have {MOST_BYTES} bytes", 413) from error
    except (ValueError, RecursionError) as error:
        raise Refused("bad_json", f"the body is no JSON: {error}") from error
    if not isinstance(body, Mapping):
        raise Refused("bad_json", "the body must be a JSON object")
    return body


def _refusal(dialect: Any, error: Refused, session: Session | None) -> web.Response:
    if session is not None:
        session.speaker.count(f"gateway/{error.name}")
    logger.debug("gateway: %s: %s", error.name, error.message)
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    body = {"message": error.message, "type": kind, "code": error.name, "param": None}
    shaped = getattr(dialect, "error", None)
    headers = {"x-should-retry": "false"}  # the SDKs would ask again what cannot be answered
    payload = {"error": body} if shaped is None else shaped(body)
    return web.Response(
        text=dumps(payload), status=error.status, content_type="application/json", headers=headers
    )


async def _send(request: web.Request, dialect: Any, asked: ChatRequest, answer: Answer) -> web.StreamResponse:
    if not asked.stream:
        response = web.Response(text=dumps(dialect.whole(answer)), content_type="application/json")
        await response.prepare(request)
        await response.write_eof()
        return response
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await stream.prepare(request)
    for name, data in dialect.events(answer, asked):
        head = f"event: {name}\n" if name else ""
        text = data if isinstance(data, str) else dumps(data)
        await stream.write(f"{head}data: {text}\n\n".encode())
    await stream.write_eof()
    return stream
