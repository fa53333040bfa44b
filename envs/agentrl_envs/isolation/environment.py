"""`isolated`: an environment class whose objects live in another process.

The rollout sees an `Env` like any other. Tools, replies and rewards are asked over there; the model, the
sandbox and the grader are asked from there, here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

from ..context import Context
from ..env import Env
from ..errors import EnvError
from ..messages import Finish, Message, Reward, ToolCall, ToolResult, ToolSpec, Transcript
from ..plain import plain
from ..raised import error_text
from .host import Host, Hosts, Place
from .wire import result_of, reward_of, spec_of, told_error, told_transcript

__all__ = ["Isolation", "isolated", "remote_env"]


@dataclass(frozen=True, slots=True)
class Isolation:
    """How the processes of an environment are kept.

    Args:
        python: interpreter, such as that of a virtual environment with what the environment needs; empty is
            this process's own.
        workers: processes that share its episodes.
        memory_mb: resident memory from which a process is replaced; 0 sets no limit.
        address: `HOST:PORT` of a server that has the environment; empty starts processes here.
    """

    python: str = ""
    workers: int = 1
    memory_mb: int = 0
    address: str = ""


class IsolatedEnv(Env):
    """Base of the classes that `isolated` makes."""

    hosts: ClassVar[Hosts]
    about: ClassVar[Mapping[str, Any]]

    def __init__(self, **given: Any) -> None:
        own = {name: given.pop(name) for name in ("sandbox", "grader", "rng") if name in given}
        super().__init__(**own)
        self._settings = given
        self._host: Host | None = None
        self._number = -1
        self._said: dict[int, Any] = {}
        self._sessions: dict[int, Any] = {}
        self._questions: set[asyncio.Task[None]] = set()
        self._serving = contextlib.AsyncExitStack()
        self._access: Any = None

    # ---- what the class tells about itself -----------------------------------------------------------------

    @classmethod
    def tool_specs(cls) -> tuple[ToolSpec, ...]:
        """The tools, as the process describes them."""
        return tuple(spec_of(told) for told in cls.about["tools"])

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as they are; the process has checked those that the class was made for."""
        return dict(settings)

    @classmethod
    def plays(cls) -> bool:
        """Whether the class has a method `play`."""
        return cls.about["plays"]

    # ---- what the rollout calls ----------------------------------------------------------------------------

    async def start(self, row: Mapping[str, Any]) -> list[Message]:
        """Find a process, and begin an episode there."""
        loop = asyncio.get_running_loop()

        def on_frame(frame: Mapping[str, Any]) -> None:
            loop.call_soon_threadsafe(self._on_frame, frame)

        self._host, self._number = await self.hosts.take(on_frame)
        return await self._ask(
            "start",
            2 * self.hook_timeout_s,
            row=plain(row),
            settings=self._settings,
            rng=self.rng.getstate()[1],
            sandbox=self._sandbox is not None,
        )

    async def call_tools(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run the calls of one turn there."""
        self._turn += 1
        limits = {spec.name: spec.timeout_s for spec in self.tool_specs()}
        limit_s = sum(limits.get(call.name, 0.0) for call in calls)
        told = await self._ask("call", limit_s, calls=[asdict(call) for call in calls])
        return [result_of(one) for one in told]

    async def respond(self, message: str) -> str | None:
        """What the environment answers to a turn that called no tool."""
        self._turn += 1
        if not self.about["replies"]:
            return None
        return await self._ask("reply", self.hook_timeout_s, message=message)

    async def play_out(self, row: Mapping[str, Any], limit_s: float) -> str | None:
        """Run `play(row)` there."""
        return await self._ask("play", limit_s, most_s=limit_s)

    async def compact_context(self, context: Context) -> None:
        """Run the user's `compact(context)` there."""
        await self._ask("compact", self.hook_timeout_s)

    async def score(
        self,
        row: Mapping[str, Any],
        answer: str | None,
        transcript: Transcript,
        *,
        finish: Finish | None = None,
    ) -> Reward:
        """The checked reward of the episode, whose row is over there."""
        told = await self._ask(
            "score",
            self.hook_timeout_s,
            answer=answer,
            transcript=told_transcript(transcript),
            finish=None if finish is None else told_error(finish),
        )
        return reward_of(told)

    async def _close(self) -> None:
        host = self._host
        try:
            if host is not None and host.alive and not host.killed:
                await host.ask("close", self.hook_timeout_s, episode=self._number)
        finally:
            self._host = None
            for task in self._questions:
                task.cancel()
            await self._serving.aclose()
            try:
                if host is not None:
                    self.hosts.leave(host, self._number)
            finally:
                await super()._close()

    async def _ask(self, do: str, limit_s: float, **given: Any) -> Any:
        """Ask the process; what changed over there changes here."""
        if self._host is None:
            raise EnvError(f"{type(self).__name__}: the episode has not begun")
        answer = await self._host.ask(do, limit_s, episode=self._number, **given)
        self._turn_rewards = {int(turn): value for turn, value in answer.get("turns", {}).items()}
        self._agent_rewards = dict(answer.get("agents", {}))
        if "messages" in answer and self._context is not None:
            self._context.messages[:] = answer["messages"]
        return answer["is"]

    # ---- what the environment asks from there --------------------------------------------------------------

    def _on_frame(self, frame: Mapping[str, Any]) -> None:
        if frame["do"] == "count":
            self.speaker.count(str(frame["name"]), int(frame["by"]))
            return
        task = asyncio.ensure_future(self._answer(frame))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _answer(self, frame: Mapping[str, Any]) -> None:
        host = self._host
        if host is None:
            return
        try:
            value = await getattr(self, f"_on_{frame['do']}")(frame)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            told = error if isinstance(error, EnvError) else EnvError(error_text(error))
            host.channel.answer(frame["ask"], error=told_error(told))
        else:
            host.channel.answer(frame["ask"], value)

    async def _on_complete(self, frame: Mapping[str, Any]) -> Any:
        tools = [spec_of(one) for one in frame["tools"]]
        said = await self.speaker.complete(frame["messages"], tools, agent=frame["agent"])
        number = len(self._said)
        self._said[number] = said
        cut = None if said.cut is None else str(getattr(said.cut, "value", said.cut))
        calls = [asdict(call) for call in said.tool_calls]
        return {"number": number, "text": said.text, "message": said.message, "cut": cut, "tool_calls": calls}

    async def _on_size(self, frame: Mapping[str, Any]) -> Any:
        return self.speaker.size(frame["messages"], [spec_of(one) for one in frame["tools"]])

    async def _on_acted(self, frame: Mapping[str, Any]) -> Any:
        results = [result_of(one) for one in frame["results"]]
        return self.speaker.acted(self._said[frame["spoken"]], results)

    async def _on_partner(self, frame: Mapping[str, Any]) -> str:
        return await self.speaker.partner(frame["messages"])

    async def _on_serve(self, frame: Mapping[str, Any]) -> Any:
        if self.hosts.place.address:
            raise EnvError(
                "programs of another machine cannot reach the model: its gateway is on the loopback"
            )
        self._access = access = await self._serving.enter_async_context(self.speaker.serve())
        return {"url": access.url, "key": access.key, "reward_key": access.reward_key}

    async def _on_unserve(self, frame: Mapping[str, Any]) -> None:
        await self._serving.aclose()

    async def _on_ended(self, frame: Mapping[str, Any]) -> None:
        await self._access.calls.ended()

    async def _on_limit(self, frame: Mapping[str, Any]) -> Any:
        limit = self._access.calls.limit
        return None if limit is None else str(getattr(limit, "value", limit))

    async def _on_handed_in(self, frame: Mapping[str, Any]) -> Any:
        return await self._access.calls.reward()

    async def _on_messages(self, frame: Mapping[str, Any]) -> list[Message]:
        return self.context.messages

    async def _on_grade(self, frame: Mapping[str, Any]) -> str:
        gold = frame["gold"]
        verdict = await self.grader.grade(frame["answer"], tuple(gold) if isinstance(gold, list) else gold)
        return verdict.value

    async def _on_open(self, frame: Mapping[str, Any]) -> int:
        from agentrl_sandbox import Limits

        limits = None if frame["limits"] is None else Limits(**frame["limits"])
        session = await self.sandbox.open(limits, stateless=frame["stateless"], seed=frame["seed"])
        number = len(self._sessions)
        self._sessions[number] = session
        return number

    async def _on_run(self, frame: Mapping[str, Any]) -> Any:
        session = self._sessions[frame["session"]]
        return asdict(await session.run(frame["code"], frame["timeout"], stdin=frame["stdin"]))

    async def _on_shut(self, frame: Mapping[str, Any]) -> None:
        await self._sessions[frame["session"]].close()


def isolated(spec: str, settings: Mapping[str, Any] | None = None, how: Isolation | None = None) -> type[Env]:
    """The environment that `spec` names, in processes of its own.

    Args:
        spec: as `load_env` takes it. It is loaded over there, and never here.
        settings: with which it is going to be used.
        how: which interpreter, and how many processes.

    Raises:
        EnvError: as `load_env`, or the process does not start.
    """
    return _isolated(spec, json.dumps(dict(settings or {}), sort_keys=True, default=str), how or Isolation())


def remote_env(address: str, settings: Mapping[str, Any]) -> type[Env]:
    """The environment of `env.name = "remote:HOST:PORT"`.

    Raises:
        EnvError: nobody answers there, or not with what is expected.
    """
    return isolated(f"remote:{address}", settings, Isolation(address=address))


@lru_cache(maxsize=64)
def _isolated(spec: str, settings_text: str, how: Isolation) -> type[Env]:
    settings = json.loads(settings_text)
    hosts = Hosts(Place(spec, settings, how.python, how.memory_mb, how.address), how.workers)
    with hosts.ready() as host:
        about = host.about
    members: dict[str, Any] = dict(about["attributes"])
    for name in ("reward_range", "required_fields", "reads_variables"):
        members[name] = tuple(members[name])
    members |= {"hosts": hosts, "about": about, "__module__": __name__, "__doc__": about["doc"]}
    members["reward"] = _graded if about["grades"] else _not_graded
    if about["compacts"]:
        members["compact"] = _over_there
    if about["generates"]:
        members["generate_rows"] = classmethod(_generate)
    return type(about["name"], (IsolatedEnv,), members)


def _graded(self: Any, row: Mapping[str, Any], answer: str | None) -> Any:
    """Asked over there; here it says that the reward asks the grader."""
    return self.grade(answer, row.get("answer"))


def _not_graded(self: Any, row: Mapping[str, Any], answer: str | None) -> Any:
    raise EnvError("the reward is asked in the environment's own process")


def _over_there(self: Any, context: Any) -> None:
    raise EnvError("the context is compacted in the environment's own process")


def _generate(cls: type[IsolatedEnv], count: int, *, split: str = "train", seed: int = 0) -> list[Any]:
    """Rows that the environment makes."""
    with cls.hosts.ready() as host:
        return host.ask_now("rows", 600.0, count=count, split=split, seed=seed)
