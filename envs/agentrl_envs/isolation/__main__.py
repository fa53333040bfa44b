"""The process of an environment: `python -m agentrl_envs.isolation FD`, started by `host.py`.

It serves the episodes of one environment class, one of each at a time in its event loop, and ends with the
connection. Whatever the environment does to this process, it does to no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..context import Context
from ..env import Env
from ..errors import EnvError
from ..golds import asks_grader
from ..graders import Verdict
from ..messages import Message, ToolCall, ToolResult, ToolSpec
from ..model import Access
from ..plain import plain
from ..registry import load_env
from .channel import PROTOCOL, Channel, Refused
from .wire import call_of, error_of, told_error, transcript_of

_WAIT_S = 3600.0
"""For an answer of the rollout, which has limits of its own."""


class HostedContext(Context):
    """The conversation as the rollout has it: fetched when it is looked at, sent back when it was changed."""

    def __init__(self, episode: Episode, opening: list[Message], tools: Sequence[ToolSpec]) -> None:
        self._episode = episode
        self._held: list[Message] | None = None
        super().__init__(opening, episode, tools)
        self._held = None

    @property
    def messages(self) -> list[Message]:  # pyrefly: ignore[bad-override]
        """The messages, to be edited in place."""
        if self._held is None:
            self._held = self._episode.wait("messages")
        return self._held

    @messages.setter
    def messages(self, messages: list[Message]) -> None:
        self._held = messages

    def changed(self) -> list[Message] | None:
        """The messages where they were looked at since the last time; None where not."""
        held, self._held = self._held, None
        return held


class Spoken:
    """One message of the model, which the rollout has under a number."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.number, self.text = told["number"], told["text"]
        self.message, self.cut = told["message"], told["cut"]
        self.tool_calls = tuple(call_of(one) for one in told["tool_calls"])


class HostedSession:
    """A session in the rollout's sandbox."""

    def __init__(self, episode: Episode, number: int) -> None:
        self._episode, self._number = episode, number

    async def run(self, code: str, timeout: float | None = None, *, stdin: str = "") -> Any:
        """Run a program; its Result."""
        from agentrl_sandbox import File, Result, Status

        given = await self._episode.ask("run", session=self._number, code=code, timeout=timeout, stdin=stdin)
        given["status"], given["files"] = (
            Status(given["status"]),
            tuple(File(**one) for one in given["files"]),
        )
        return Result(**given)

    async def close(self) -> None:
        """Close it."""
        await self._episode.ask("shut", session=self._number)


class Episode:
    """One episode in this process. It is the environment's model, grader and sandbox, all by asking."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number
        self.env: Env | None = None
        self.row: dict[str, Any] = {}
        self.tasks: set[asyncio.Task[Any]] = set()

    def begin(self, env_class: type[Env], frame: dict[str, Any]) -> Env:
        """Make the environment's object."""
        rng = random.Random()
        rng.setstate((3, tuple(frame["rng"]), None))
        sandbox: Any = self if frame["sandbox"] else None
        grader: Any = self
        env = env_class(sandbox=sandbox, grader=grader, rng=rng, **frame["settings"])
        env.attach(self)
        self.env, self.row = env, frame["row"]
        return env

    async def ask(self, do: str, **given: Any) -> Any:
        """Ask the rollout something of this episode; what it raises is raised here."""
        future = self._channel.ask(do, episode=self._number, **given)
        try:
            return await asyncio.wrap_future(future)
        except Refused as refused:
            raise error_of(refused.error) from None

    def wait(self, do: str, **given: Any) -> Any:
        """The same from a function that cannot await; blocks this thread."""
        try:
            return self._channel.ask(do, episode=self._number, **given).result(_WAIT_S)
        except Refused as refused:
            raise error_of(refused.error) from None

    # ---- the model -----------------------------------------------------------------------------------------

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, agent: str = "agent"
    ) -> Spoken:
        """The next message."""
        given = await self.ask(
            "complete", messages=list(messages), tools=[asdict(t) for t in tools], agent=agent
        )
        if given["cut"] is None and self.env is not None:
            self.env.spoke()
        return Spoken(given)

    def size(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[int, int]:
        """Tokens that messages take, and that the context holds."""
        tokens, limit = self.wait("size", messages=list(messages), tools=[asdict(tool) for tool in tools])
        return tokens, limit

    def acted(self, spoken: Any, results: Sequence[ToolResult]) -> list[Message]:
        """The results of a message's calls, as messages."""
        return self.wait("acted", spoken=spoken.number, results=[asdict(result) for result in results])

    def count(self, name: str, by: int = 1) -> None:
        """Count something."""
        self._channel.tell("count", episode=self._number, name=name, by=by)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Access]:
        """Let programs of this machine reach the rollout's model over HTTP while the context is open."""
        given = await self.ask("serve")
        try:
            yield Access(given["url"], given["key"], given["reward_key"], HostedCalls(self))
        finally:
            await self.ask("unserve")

    async def partner(self, messages: Sequence[Message]) -> str:
        """The next message of another model."""
        return await self.ask("partner", messages=list(messages))

    # ---- the grader and the sandbox ------------------------------------------------------------------------

    def grade_sync(self, answer: str | None, gold: str | Sequence[str]) -> Verdict:
        """The verdict of the rollout's grader."""
        return Verdict(self.wait("grade", answer=answer, gold=gold))

    async def grade(self, answer: str | None, gold: str | Sequence[str]) -> Verdict:
        """The same, from a coroutine."""
        return Verdict(await self.ask("grade", answer=answer, gold=gold))

    async def open(
        self, limits: Any = None, *, stateless: bool = False, seed: int | None = None
    ) -> HostedSession:
        """Open a session of the rollout's sandbox."""
        given = None if limits is None else asdict(limits)
        return HostedSession(self, await self.ask("open", limits=given, stateless=stateless, seed=seed))


class HostedCalls:
    """What the rollout's gateway tells."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode

    async def ended(self) -> None:
        """Wait until the episode cannot go on."""
        await self._episode.ask("ended")

    @property
    def limit(self) -> Any:
        """The limit that ended the conversation; asking blocks this thread."""
        return self._episode.wait("limit")

    async def reward(self) -> Any:
        """Wait for the reward that is handed in."""
        return await self._episode.ask("handed_in")


class Host:
    """Serves the episodes of one class."""

    def __init__(self, peer: socket.socket, spec: str) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._episodes: dict[int, Episode] = {}
        self._class: type[Env] = Env
        self._channel = Channel(peer, self._on_frame, lambda: os._exit(0), "rollout")

    def _on_frame(self, frame: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._begin, frame)

    def _begin(self, frame: dict[str, Any]) -> None:
        if frame["do"] == "start":  # before its task runs: a close that comes meanwhile ends that too
            self._episodes[frame["episode"]] = Episode(self._channel, frame["episode"])
        task = self._loop.create_task(self._serve(frame))
        episode = self._episodes.get(frame.get("episode", -1))
        if episode is not None and frame["do"] != "close":
            episode.tasks.add(task)
            task.add_done_callback(episode.tasks.discard)

    async def _serve(self, frame: dict[str, Any]) -> None:
        number = frame["ask"]
        try:
            work: Callable[[dict[str, Any]], Awaitable[Any]] = getattr(self, f"_do_{frame['do']}")
            value = await work(frame)
        except asyncio.CancelledError:
            self._channel.answer(number, error=told_error(EnvError("the episode was closed meanwhile")))
        except BaseException as error:
            self._channel.answer(number, error=told_error(error))
        else:
            self._channel.answer(number, self._with_news(frame, value))

    def _with_news(self, frame: dict[str, Any], value: Any) -> dict[str, Any]:
        """The answer, with what the environment changed beside it."""
        episode = self._episodes.get(frame.get("episode", -1))
        told: dict[str, Any] = {"is": value}
        if episode is not None and episode.env is not None:
            env = episode.env
            told["turns"], told["agents"] = dict(env.turn_rewards), dict(env.agent_rewards)
            context = env._context
            if isinstance(context, HostedContext) and (messages := context.changed()) is not None:
                told["messages"] = messages
        return told

    async def _do_load(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Load the class; what the rollout must know of it."""
        if frame["protocol"] != PROTOCOL:
            raise EnvError(
                f"this agentrl speaks version {PROTOCOL} of the protocol, the rollout {frame['protocol']}"
            )
        self._class = env = await asyncio.to_thread(load_env, self._spec or frame["spec"], frame["settings"])
        ready = env.check_settings(frame["settings"])
        from ..program import ProgramEnv

        if issubclass(env, ProgramEnv):
            raise EnvError('a program is a process of its own already: leave env.isolation at "none"')
        return {
            "name": env.__name__,
            "doc": env.__doc__,
            "tools": [asdict(spec) for spec in env.tool_specs()],
            "attributes": {name: plain(ready.get(name, getattr(env, name))) for name in _TOLD},
            "plays": env.plays(),
            "replies": hasattr(env, "reply"),
            "compacts": hasattr(env, "compact"),
            "grades": asks_grader(env),
            "generates": hasattr(env, "generate_rows"),
        }

    async def _do_rows(self, frame: dict[str, Any]) -> Any:
        made: Any = self._class
        rows = made.generate_rows(frame["count"], split=frame["split"], seed=frame["seed"])
        return [dict(row) for row in rows]

    async def _do_start(self, frame: dict[str, Any]) -> Any:
        episode = self._episodes[frame["episode"]]
        env = episode.begin(self._class, frame)
        messages = await env.start(episode.row)
        env._context = HostedContext(episode, messages, env.tool_specs())
        return messages

    def _env(self, frame: dict[str, Any]) -> Env:
        return self._episode(frame)[1]

    def _episode(self, frame: dict[str, Any]) -> tuple[dict[str, Any], Env]:
        """Row and environment of the episode that a question is about."""
        episode = self._episodes.get(frame["episode"])
        if episode is None or episode.env is None:
            raise EnvError("the episode is not open in this process")
        return episode.row, episode.env

    async def _do_call(self, frame: dict[str, Any]) -> Any:
        results = await self._env(frame).call_tools([ToolCall(**one) for one in frame["calls"]])
        return [asdict(result) for result in results]

    async def _do_reply(self, frame: dict[str, Any]) -> str | None:
        return await self._env(frame).respond(frame["message"])

    async def _do_play(self, frame: dict[str, Any]) -> str | None:
        row, env = self._episode(frame)
        return await env.play_out(row, frame["most_s"])

    async def _do_compact(self, frame: dict[str, Any]) -> None:
        env = self._env(frame)
        await env.compact_context(env.context)

    async def _do_score(self, frame: dict[str, Any]) -> Any:
        row, env = self._episode(frame)
        finish: Any = None if frame["finish"] is None else error_of(frame["finish"])
        reward = await env.score(row, frame["answer"], transcript_of(frame["transcript"]), finish=finish)
        return asdict(reward)

    async def _do_close(self, frame: dict[str, Any]) -> None:
        episode = self._episodes.pop(frame["episode"], None)
        if episode is None:
            return
        for task in list(episode.tasks):
            task.cancel()
        if episode.env is not None:
            await episode.env.aclose()


_TOLD = ("max_turns", "reward_range", "tool_timeout_s", "hook_timeout_s", "required_fields", "example_rows")
_TOLD += ("system_prompt", "reads_variables")


async def _serve_forever(peer: socket.socket, spec: str) -> None:
    host = Host(peer, spec)
    await asyncio.Event().wait()
    del host


def main() -> None:
    """Serve the socket whose number is the first argument, and end with it.

    The second is the environment, where whoever is connected may not choose it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the rollout
    asyncio.run(_serve_forever(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))


if __name__ == "__main__":
    main()
