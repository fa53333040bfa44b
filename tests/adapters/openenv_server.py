"""A server of the real OpenEnv: `python openenv_server.py KIND PORT`."""

from __future__ import annotations

import sys
import time
from typing import Any

import uvicorn
from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Move(Action):
    """Count up by some."""

    by: int


class Count(Observation):
    text: str = ""


class Counting(Environment):
    """Done at ten; each step is worth what it adds, in tenths."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Count:
        self.count = (seed or 0) % 10
        return Count(text=f"at {self.count}")

    def step(self, action: Move, timeout_s: float | None = None, **kwargs: Any) -> Count:
        if action.by == 13:
            raise ValueError("thirteen is unlucky")
        if action.by == 99:
            time.sleep(60)
        if action.by == 1000:
            return Count(text="x" * 20_000_000)
        self.count += action.by
        return Count(text=f"at {self.count}", reward=action.by / 10, done=self.count >= 10)

    @property
    def state(self) -> State:
        return State(step_count=self.count)


def tools(more: tuple[str, ...] = (), many: int = 4) -> Any:
    from fastmcp import FastMCP
    from openenv.core.env_server.mcp_environment import MCPEnvironment
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

    class Sums(MCPEnvironment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            mcp = FastMCP("sums")

            @mcp.tool
            def add(first: int, second: int) -> int:
                """Add two numbers."""
                if first < 0:
                    raise ValueError("no negative numbers")
                return first + second

            @mcp.tool
            def python(code: str) -> str:
                """Say it again."""
                return code

            for name in more:
                mcp.tool(name=name)(lambda: 0)
            super().__init__(mcp)

        def reset(self, seed: int | None = None, **kwargs: Any) -> Observation:
            return Observation(done=False, reward=0.0, metadata={})

        def _step_impl(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
            raise ValueError("call a tool")

        @property
        def state(self) -> State:
            return State()

    return create_app(Sums, CallToolAction, CallToolObservation, max_concurrent_envs=many)


if __name__ == "__main__":
    kind, port = sys.argv[1:]
    many = {"crowded": 1, "many": 32}.get(kind, 4)
    twins = ("first.one", "first_one") if kind == "twins" else ()
    listed = kind in ("tools", "twins", "many")
    app = tools(twins, many) if listed else create_app(Counting, Move, Count, max_concurrent_envs=many)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
