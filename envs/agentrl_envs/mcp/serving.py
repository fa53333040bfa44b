"""An environment as an MCP server over this process's standard streams: one process is one episode.

Its tools are the server's tools, and its opening message is the prompt `task`. The reward is not told, unless
a tool `submit` is asked for. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from ..env import Env
from ..errors import EnvError
from ..messages import Finish, ToolCall, Transcript, text_of
from ..stand_in import StandIn

__all__ = ["serve_env"]

_SUBMIT = types.Tool(
    name="submit",
    description="Hand in the final answer; the reward comes back, and the episode ends.",
    input_schema={"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]},
)


class _Episode:
    """The handlers of one server."""

    def __init__(self, env: Env, row: Mapping[str, Any], task: str, submit: bool) -> None:
        self._env, self._row, self._task, self._submit = env, row, task, submit
        self._over: Finish | None = None

    async def list_tools(self, context: Any, given: Any) -> types.ListToolsResult:
        """The environment's tools."""
        tools = [
            types.Tool(name=spec.name, description=spec.description, input_schema=spec.parameters)
            for spec in self._env.tool_specs()
        ]
        return types.ListToolsResult(tools=[*tools, *([_SUBMIT] if self._submit else [])])

    async def call_tool(self, context: Any, given: types.CallToolRequestParams) -> types.CallToolResult:
        """Run a call; what breaks the episode is told as an error of the tool, and the episode is over."""
        arguments = dict(given.arguments or {})
        if self._submit and given.name == _SUBMIT.name:
            return await self._reward(str(arguments.get("answer", "")))
        if self._over is not None:
            return _said("the episode is over", True)
        try:
            (result,) = await self._env.call_tools([ToolCall("0", given.name, arguments)])
        except Finish as finish:
            self._over = finish
            return _said(str(finish), False)
        except EnvError as error:
            self._over = Finish(text=str(error))
            return _said(f"{type(error).__name__}: {error}", True)
        return _said(result.text, not result.ok)

    async def list_prompts(self, context: Any, given: Any) -> types.ListPromptsResult:
        """The task."""
        return types.ListPromptsResult(prompts=[types.Prompt(name="task", description="What is to be done.")])

    async def get_prompt(self, context: Any, given: types.GetPromptRequestParams) -> types.GetPromptResult:
        """The task's text."""
        content = types.TextContent(type="text", text=self._task)
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=content)])

    async def _reward(self, answer: str) -> types.CallToolResult:
        try:
            reward = await self._env.score(
                self._row, answer, Transcript(turns=1, stop_reason="answered"), finish=self._over
            )
        except EnvError as error:
            return _said(f"{type(error).__name__}: {error}", True)
        self._over = self._over or Finish(text="an answer was handed in")
        return _said(json.dumps({"reward": reward.value, "parts": reward.parts}), False)


def _said(text: str, is_error: bool) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=is_error)


async def serve_env(env: Env, row: Mapping[str, Any], *, submit: bool = False) -> None:
    """Serve one episode until standard input ends.

    Args:
        env: an object of its class; it is closed at the end.
        row: that the episode is about.
        submit: whether there is a tool that takes the answer and tells the reward.

    Raises:
        EnvError: the episode does not start, or the environment has a tool called `submit` itself.
    """
    if submit and any(spec.name == _SUBMIT.name for spec in env.tool_specs()):
        raise EnvError(f"{type(env).__name__} has a tool called 'submit' itself: leave --submit away")
    env.attach(StandIn())
    try:
        messages = await env.start(row)
        env.converse(messages, env.tool_specs())
        episode = _Episode(env, row, "\n\n".join(map(text_of, messages)), submit)
        server = Server(
            type(env).__name__,
            on_list_tools=episode.list_tools,
            on_call_tool=episode.call_tool,
            on_list_prompts=episode.list_prompts,
            on_get_prompt=episode.get_prompt,
        )
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
    finally:
        await env.aclose()
