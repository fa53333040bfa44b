"""`env.name = "openenv:URL"`: an environment that a server offers by the protocol of OpenEnv.

Each episode has a connection, and so an environment, of its own. The tools are the server's: those that it
lists, or one tool `step` whose arguments are its actions. The package openenv is not needed. Knows nothing of
what is behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from ..errors import EnvError, EnvNotFound, ToolError, ToolFailure
from ..messages import Finish
from ..raised import error_text
from ..secret_text import masked
from ..threads import run_apart
from ..tools import SchemaTool, schema_tools
from .making import RangedEnv, make_class, seeded_rows

__all__ = ["OpenEnv", "openenv_env"]

_PROMPTS = ("prompt", "problem", "question")
_TOLD = ("VALIDATION_ERROR", "EXECUTION_ERROR")
"""Errors of the server that an action caused; the model is told."""
_MOST_BYTES = 8 * 2**20
"""Of one message of the server."""
_NOTHING = (None, "", [], {})
"""What a field of an observation says nothing with."""


class OpenEnv(RangedEnv):
    """A task of a server; its tools are called until it says that the episode is done."""

    max_turns = 32
    url: ClassVar[str] = ""

    rewards: Literal["sum", "last"] = "sum"
    """The reward of an episode: the sum over its steps, or that of the last step that had one."""
    instructions: str = ""
    """What stands before the first observation, after the row's prompt."""

    async def prompt(self, row: Mapping[str, Any]) -> str:
        """The row's prompt, and the observation after the reset."""
        self._given: list[float] = []
        self._link = await _Link.open(self.url, self.hook_timeout_s)
        fields = {name: value for name, value in row.items() if name not in ("id", *_PROMPTS)}
        reset = await self._link.ask("reset", fields, self.hook_timeout_s)
        asked = next((str(row[name]) for name in _PROMPTS if row.get(name) is not None), "")
        return "\n\n".join(filter(None, (asked, self.instructions, _text(reset["observation"]))))

    async def step(self, action: Mapping[str, Any]) -> str:
        """Take one step; the observation as text."""
        # Sooner than the limit of the call: an answer that comes too late would be read as the next one's.
        answer = await self._link.ask("step", action, 0.9 * self.tool_timeout_s)
        observation = answer.get("observation") or {}
        if answer.get("reward") is not None:
            self._given.append(float(answer["reward"]))
            self.reward_turn(self._given[-1])
        if answer.get("done"):
            raise Finish(reward=self._total(), text=_text(observation))
        if (error := observation.get("error")) is not None:
            raise ToolError(error.get("message", str(error)) if isinstance(error, Mapping) else str(error))
        return _text(observation)

    def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """What the steps were rewarded with; the lowest where none was."""
        return self._total()

    def _total(self) -> float:
        if not self._given:
            return self.lowest
        return self._given[-1] if self.rewards == "last" else sum(self._given)

    async def close(self) -> None:
        """Close the connection, which ends the server's environment."""
        if (link := getattr(self, "_link", None)) is not None:
            await link.close()

    @classmethod
    def generate_rows(
        cls, count: int, *, split: Literal["train", "test"], seed: int = 0
    ) -> list[dict[str, Any]]:
        """`count` rows `{"id", "seed"}`; no seed belongs to both splits."""
        return seeded_rows(cls.url, count, split, seed)


class _Link:
    """One connection to a server, which has one environment for it."""

    def __init__(self, url: str, session: Any, socket: Any) -> None:
        self._who, self._session, self._socket = f"the OpenEnv server at {masked(url)}", session, socket

    @classmethod
    async def open(cls, url: str, limit_s: float) -> _Link:
        """Connect. ToolFailure where the server is out of reach."""
        import aiohttp

        session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(limit_s):
                socket = await session.ws_connect(f"{url}/ws", max_msg_size=_MOST_BYTES)
        except BaseException as error:
            await session.close()
            if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
                raise ToolFailure(masked(f"no OpenEnv server at {url}: {error_text(error)}")) from error
            raise
        return cls(url, session, socket)

    async def ask(self, kind: str, data: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a reset or a step.

        Raises:
            ToolError: the action was refused, or failed in the environment.
            ToolFailure: no answer within `limit_s` seconds, none that can be read, or no connection.
        """
        import aiohttp

        try:
            async with asyncio.timeout(limit_s):
                await self._socket.send_json({"type": kind, "data": dict(data)})
                message = await self._socket.receive()
        except TimeoutError as error:
            raise ToolFailure(f"{self._who} did not answer within {limit_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ToolFailure(f"{self._who} is gone: {error_text(error)}") from error
        if message.type is not aiohttp.WSMsgType.TEXT:
            why = f"{message.type.name} {message.data or message.extra or ''}".strip()
            raise ToolFailure(f"{self._who} closed the connection: {why}")
        return self._read(message.data)

    def _read(self, text: str) -> dict[str, Any]:
        try:
            answer = json.loads(text)
            kind, data = answer["type"], answer["data"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ToolFailure(f"{self._who} sent what cannot be read: {text[:200]!r}") from error
        if kind != "error":
            return data
        said, code = data.get("message", str(data)), data.get("code")
        if code in _TOLD:
            raise ToolError(
                f"{said} {json.dumps(data['errors'], default=str)}" if data.get("errors") else said
            )
        hint = "; let it have more (max_concurrent_envs), or lower stream.in_flight"
        raise ToolFailure(f"{self._who}: {said}{hint if code == 'CAPACITY_REACHED' else ''}")

    async def close(self) -> None:
        """Close, also where the server is gone."""
        await self._socket.close()
        await self._session.close()


def openenv_env(rest: str, settings: Mapping[str, Any]) -> type[OpenEnv]:
    """The environment of `env.name = "openenv:http://HOST:PORT"`.

    Raises:
        EnvNotFound: no server answers there, or none of OpenEnv.
        EnvError: tools that cannot be described, or two that a model would call the same.
    """
    url = rest.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise EnvNotFound(
            f'"openenv:{masked(rest)}": want the address of a server, such as openenv:http://localhost:8000'
        )
    body: dict[str, Any] = {"url": url, "__doc__": f"A task of the server at {masked(url)}."}
    body |= schema_tools(f"the OpenEnv server at {masked(url)}", run_apart(_offered(url)))
    return make_class(OpenEnv, body, settings)[0]


def _called(name: str) -> Callable[..., Any]:
    """A method that calls a tool of the server by name."""

    async def call(self: OpenEnv, **arguments: Any) -> str:
        return await self.step({"type": "call_tool", "tool_name": name, "arguments": arguments})

    return call


async def _act(self: OpenEnv, **arguments: Any) -> str:
    """Take an action of a server that has no tools."""
    return await self.step(arguments)


async def _offered(url: str) -> list[SchemaTool]:
    """The tools of a server, or the one that its actions are."""
    import aiohttp

    try:
        limit = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=limit) as session, session.get(f"{url}/schema") as response:
            response.raise_for_status()
            action = (await response.json())["action"]
    except (aiohttp.ClientError, OSError, ValueError, TypeError, KeyError) as error:
        raise EnvNotFound(
            masked(f"no OpenEnv server answers at {url}/schema: {error_text(error)}")
        ) from error
    properties = action.get("properties", {})
    if not {"tool_name", "arguments"} <= set(properties):
        own = {key: value for key, value in properties.items() if key != "metadata"}
        text = str(action.get("description") or "Take one step.")
        return [SchemaTool("step", text, {**action, "properties": own}, _act)]
    link = await _Link.open(url, 30)
    try:
        listed = await link.ask("step", {"type": "list_tools"}, 30)
    except ToolError as error:
        raise EnvError(f"the OpenEnv server at {masked(url)} does not list its tools: {error}") from error
    finally:
        await link.close()
    return [
        SchemaTool(
            one["name"], one.get("description") or "", one.get("input_schema") or {}, _called(one["name"])
        )
        for one in listed["observation"]["tools"]
    ]


def _text(observation: Any) -> str:
    """An observation as a model reads it: a lone text as it is, results of tools without their wrapping."""
    if not isinstance(observation, Mapping):
        return observation if isinstance(observation, str) else json.dumps(observation, default=str)
    if "tool_name" in observation:
        return _result(observation.get("result"))
    kept = {key: one for key, one in observation.items() if key != "metadata" and one not in _NOTHING}
    if len(kept) == 1 and isinstance(only := next(iter(kept.values())), str):
        return only
    return json.dumps(kept, default=str) if kept else ""


def _result(result: Any) -> str:
    if isinstance(result, Mapping) and result.get("data") is not None:
        result = result["data"]
    elif isinstance(result, Mapping) and isinstance(result.get("content"), list):
        result = "\n".join(str(part.get("text", "")) for part in result["content"])
    return result if isinstance(result, str) else json.dumps(result, default=str)
