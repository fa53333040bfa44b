"""An environment as a server of OpenEnv: each connection to `/ws` is a session of many episodes.

An action is a call of a tool, as environments of OpenEnv that are made of tools take it. One tool more,
`submit`, is a message of the model that calls none: it ends the episode and tells the reward, or the
environment replies to it. The package openenv is not needed. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..env import Env
from ..errors import EnvError
from ..messages import Finish, ToolCall, ToolResult, Transcript, text_of
from ..raised import error_text
from ..stand_in import StandIn

__all__ = ["EpisodeServer", "Unreadable"]

_MOST_BYTES = 8 << 20
"""Of one message of a client."""
_SUBMIT = {
    "name": "submit",
    "description": "Hand in the answer.",
    "input_schema": {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]},
}
_ACTION = {
    "type": "object",
    "description": "List the tools, or call one.",
    "properties": {
        "type": {"enum": ["list_tools", "call_tool"], "default": "call_tool"},
        "tool_name": {"type": "string"},
        "arguments": {"type": "object"},
    },
}
_NO_MCP = "this server plays by /ws alone: use GenericEnvClient, whose actions are calls of tools"


class Unreadable(Exception):
    """A message of a client that cannot be done; `code` is one of OpenEnv's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class EpisodeServer:
    """Serves episodes of one class.

    Raises:
        EnvError: it has a tool `submit` itself, or plays its episodes on its own.
    """

    make: Callable[[random.Random], Env]
    """Makes the environment of an episode, with its random stream."""
    rows: Sequence[Mapping[str, Any]]
    most: int
    """Sessions at once."""
    idle_s: float
    """Within which a session must say something."""
    _numbers: Any = field(default_factory=itertools.count)
    _open: int = 0
    _class: type[Env] = Env

    def __post_init__(self) -> None:
        self._class = made = type(self.make(random.Random(0)))
        if made.plays():
            raise EnvError(
                f"{made.__name__} plays its episodes itself, so that nobody else can take its steps"
            )
        if any(spec.name == "submit" for spec in made.tool_specs()):
            raise EnvError(f"{made.__name__} has a tool called 'submit' itself: give that another name")

    def app(self) -> Any:
        """The application of aiohttp."""
        from aiohttp import web

        app = web.Application()
        told = {"name": self._class.__name__, "description": str(self._class.__doc__ or "")}
        schema = {"action": _ACTION, "observation": {"type": "object"}, "state": {"type": "object"}}
        no_mcp = {"jsonrpc": "2.0", "id": None, "error": {"code": -32601, "message": _NO_MCP}}
        for path, answer in (("/health", {"status": "healthy"}), ("/metadata", told), ("/schema", schema)):
            app.router.add_get(path, _always(answer))
        app.router.add_post("/mcp", _always(no_mcp))
        app.router.add_get("/ws", self._session)
        return app

    async def _session(self, request: Any) -> Any:
        from aiohttp import web

        # Browsers let any page open a socket to this machine; only they send an Origin.
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"a page of {origin} may not play here")
        socket = web.WebSocketResponse(
            max_msg_size=_MOST_BYTES, heartbeat=30.0, receive_timeout=self.idle_s, timeout=5.0
        )
        await socket.prepare(request)
        if self._open >= self.most:
            said = f"all {self.most} sessions are taken (serve.sessions)"
            await socket.send_json(_refusal("CAPACITY_REACHED", said))
            await socket.close()
            return socket
        self._open += 1
        session = _Session(self)
        try:
            await session.serve(socket)
        except TimeoutError:
            said = f"the session said nothing for {self.idle_s:g} s (serve.idle_s)"
            await socket.send_json(_refusal("SESSION_ERROR", said))
        except ConnectionError:
            pass  # the client is gone, and its episode with it
        finally:
            self._open -= 1
            await asyncio.shield(session.close())
            await socket.close()
        return socket

    def begin(self, data: Mapping[str, Any]) -> _Episode:
        """The episode that a reset asks for: the row `row`, or that of its `seed`, or the next.

        Raises:
            Unreadable: no such row, or a seed that is no number.
        """
        number = next(self._numbers)
        row, seed = data.get("row"), data.get("seed")
        for name, value in (("row", row), ("seed", seed)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise Unreadable("VALIDATION_ERROR", f"{name}={value!r:.80}: want a whole number from 0")
        if row is not None and row >= len(self.rows):
            raise Unreadable(
                "VALIDATION_ERROR", f"row={row}: there are {len(self.rows)} rows, counted from 0"
            )
        at = row if row is not None else (number if seed is None else seed) % len(self.rows)
        env = self.make(random.Random(number if seed is None else seed))
        return _Episode(env, dict(self.rows[at]), str(data.get("episode_id") or number))


@dataclass(slots=True)
class _Session:
    """One connection."""

    server: EpisodeServer
    episode: _Episode | None = None

    async def serve(self, socket: Any) -> None:
        """Answer messages until the client closes."""
        from aiohttp import WSMsgType

        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                await socket.send_json(_refusal("INVALID_JSON", "want a JSON object as text"))
                continue
            answer = await self._answer(message.data)
            if answer is None:
                return
            await socket.send_json(answer)

    async def close(self) -> None:
        """End the episode, if there is one."""
        episode, self.episode = self.episode, None
        if episode is not None:
            await episode.env.aclose()

    async def _answer(self, text: str) -> dict[str, Any] | None:
        """The answer to a message; None where it ends the session."""
        try:
            kind, data = _read(text)
            if kind == "close":
                return None
            if kind == "reset":
                await self.close()
                self.episode = self.server.begin(data)
                return _observed(await self.episode.start())
            if kind == "step" and data.get("type") == "list_tools":
                return _observed({"tools": _tools(self.server._class)})
            if self.episode is None:
                raise Unreadable("EXECUTION_ERROR", "no episode has begun: send a reset first")
            return self.episode.state() if kind == "state" else _observed(*await self.episode.step(data))
        except Unreadable as error:
            return _refusal(error.code, str(error))
        except EnvError as error:
            # No fault of the action, so that nobody takes it for one: the episode has no reward.
            await self.close()
            return _refusal("SESSION_ERROR", f"the episode failed: {error_text(error)}")


@dataclass(slots=True)
class _Episode:
    """One episode."""

    env: Env
    row: Mapping[str, Any]
    name: str
    messages: list[Any] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    steps: int = 0
    over: bool = False

    async def start(self) -> dict[str, Any]:
        """The observation of the reset: the prompt."""
        self.env.attach(StandIn())
        self.messages += await self.env.start(self.row)
        self.env.converse(self.messages, self.env.tool_specs())
        return {"prompt": "\n\n".join(map(text_of, self.messages))}

    def state(self) -> dict[str, Any]:
        """Which episode it is, and how far it is."""
        return {"type": "state", "data": {"episode_id": self.name, "step_count": self.steps}}

    async def step(self, action: Mapping[str, Any]) -> tuple[dict[str, Any], float | None, bool]:
        """Take an action: observation, reward, and whether the episode is over.

        Raises:
            Unreadable: the action is no call of a tool, or the episode is over.
            EnvError: the environment broke.
        """
        if self.over:
            raise Unreadable("EXECUTION_ERROR", "the episode is over: send a reset")
        name, arguments = action.get("tool_name"), action.get("arguments") or {}
        if action.get("type", "call_tool") != "call_tool" or not isinstance(name, str):
            raise Unreadable(
                "VALIDATION_ERROR", 'want {"type": "call_tool", "tool_name": NAME, "arguments": {}}'
            )
        if not isinstance(arguments, Mapping):
            raise Unreadable("VALIDATION_ERROR", "arguments must be an object")
        self.steps += 1
        try:
            if name == "submit":
                return await self._submit(arguments)
            return await self._call(name, arguments)
        except Finish as finish:
            reward = await self._reward(None, "finished", finish)
            return _called(name, str(finish)), reward, True

    async def _submit(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], float | None, bool]:
        answer = arguments.get("answer")
        if not isinstance(answer, str):
            raise Unreadable("VALIDATION_ERROR", "submit wants an answer, which is a text")
        self.messages.append({"role": "assistant", "content": answer})
        reply = await self.env.respond(answer)
        if reply is None:
            return _called("submit", ""), await self._reward(answer, "answered"), True
        self.messages.append({"role": "user", "content": reply})
        return await self._went_on("submit", reply)

    async def _call(
        self, name: str, arguments: Mapping[str, Any]
    ) -> tuple[dict[str, Any], float | None, bool]:
        call = ToolCall(f"call-{self.steps}", name, dict(arguments))
        self.calls.append(call)
        (result,) = await self.env.call_tools([call])
        if result.infrastructure_failure:
            raise EnvError(f"tool {name}: {result.text}")
        self.results.append(result)
        message = {"role": "tool", "name": name, "tool_call_id": call.id, "content": result.text}
        self.messages.append(message)
        return await self._went_on(name, result.text, error=not result.ok)

    async def _went_on(
        self, name: str, text: str, *, error: bool = False
    ) -> tuple[dict[str, Any], float | None, bool]:
        """What a step says that did not end the episode by itself; the last one that it may have does."""
        observation = _called(name, text, error)
        if self.steps < self.env.max_turns:
            return observation, None, False
        return observation, await self._reward(None, "max_turns"), True

    async def _reward(self, answer: str | None, reason: str, finish: Finish | None = None) -> float:
        self.over = True
        transcript = Transcript(
            messages=tuple(self.messages),
            tool_calls=tuple(self.calls),
            tool_results=tuple(self.results),
            turns=self.steps,
            stop_reason=reason,
        )
        return (await self.env.score(self.row, answer, transcript, finish=finish)).value


def _read(text: str) -> tuple[str, Mapping[str, Any]]:
    """Kind and data of a message. Unreadable where it is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("INVALID_JSON", f"Invalid JSON: {error}") from error
    kind = message.get("type") if isinstance(message, Mapping) else None
    if kind not in ("reset", "step", "state", "close"):
        raise Unreadable("UNKNOWN_TYPE", f"a message of type {kind!r:.80}; want reset, step, state or close")
    data = message.get("data") or {}
    if not isinstance(data, Mapping):
        raise Unreadable("VALIDATION_ERROR", f"the data of a {kind} must be an object")
    return kind, data


def _tools(env: type[Env]) -> list[dict[str, Any]]:
    own = [
        {"name": spec.name, "description": spec.description, "input_schema": spec.parameters}
        for spec in env.tool_specs()
    ]
    return [*own, _SUBMIT]


def _called(name: str, text: str, error: bool = False) -> dict[str, Any]:
    """The observation after a call."""
    failed = {"error_type": "execution_error", "message": text} if error else None
    return {"tool_name": name, "result": None if error else text, "error": failed}


def _observed(
    observation: Mapping[str, Any], reward: float | None = None, done: bool = False
) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": observation, "reward": reward, "done": done}}


def _refusal(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"code": code, "message": message}}


def _always(answer: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A handler that gives one answer."""

    async def handle(request: Any) -> Any:
        from aiohttp import web

        return web.json_response(answer)

    return handle
