"""`env.name = "verifiers:NAME"`: an environment of verifiers, 0.2 line, plays itself with our model.

Its own rollout runs, single-turn, multi-turn or with tools, and its own rubric is the reward. Each message it
asks for is sampled with exact tokens. Knows nothing of what its environments do.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import signal
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from ..errors import EnvError, EnvNotFound, SettingsError
from ..infrastructure import is_infrastructure
from ..messages import Message, ToolResult, ToolSpec
from ..model import Model
from ..raised import error_text
from ..registry import load_file
from ..secret_text import masked
from ..user_code import CallThread
from .loops import LoopThread, LoopThreads
from .making import RangedEnv, make_class

__all__ = ["VerifiersEnv", "verifiers_env"]

_raised: contextvars.ContextVar[list[Exception]] = contextvars.ContextVar("raised")
"""What functions of the running rollout raised; to its rubric, one of a reward function is a reward of 0."""


class VerifiersEnv(RangedEnv):
    """A task of verifiers."""

    max_turns = 64
    required_fields = ("prompt", "example_id")
    env_id: ClassVar[str] = ""

    arguments: dict[str, Any] = {}  # noqa: RUF012 - a setting; each instance has its own
    """Arguments of `load_environment`."""
    loops: int = 1
    """Event loops that share the rollouts, each with a copy of the environment."""

    _scored: float | None = None

    async def play(self, row: Mapping[str, Any]) -> str | None:
        """Let the environment run its rollout; the text of its last message."""
        messages = _Messages(self.speaker, asyncio.get_running_loop(), self.max_turns)
        output = await _rollout(self, row, messages.answer)
        self._scored = output["reward"]
        return messages.last

    async def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """What its rubric gave; where nothing was played, what it gives a policy that only says `answer`."""
        if self._scored is not None:
            return self._scored

        async def said(messages: Any, tools: Any) -> tuple[str, Sequence[Any], bool]:
            return answer or "", (), False

        return (await _rollout(self, row, said))["reward"]

    @classmethod
    def loaded(cls) -> Any:
        """The environment with the arguments that the class was made with."""
        return _loaded(cls.env_id, _key({}))

    @classmethod
    def threads(cls) -> LoopThreads:
        """The loops of the environment with the same arguments."""
        return _threads(cls.env_id, _key({}))

    @classmethod
    def generate_rows(
        cls, count: int, *, split: Literal["train", "test"], seed: int = 0
    ) -> list[dict[str, Any]]:
        """Rows of its own data sets; those held out are its evaluation set.

        Raises:
            SettingsError: it has none, or fewer rows.
        """
        rows = _rows(cls.loaded(), split, count, seed)
        if not rows:
            raise SettingsError(f"verifiers:{cls.env_id} has no evaluation set: name rows of yours")
        if len(rows) < count:
            raise SettingsError(
                f"verifiers:{cls.env_id} has {len(rows)} rows for {split!r}, and {count} are wanted"
            )
        return rows


def _rows(environment: Any, split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most `count` rows of a data set of its own, with ids; none where it has no such set."""
    if split == "test":
        environment.build_eval_dataset()
        if environment.eval_dataset is None:
            return []
    get = environment.get_dataset if split == "train" else environment.get_eval_dataset
    return [{"id": f"{split}-{row['example_id']}", **row} for row in get(count, seed or None).to_list()]


def _key(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True)


Answer = Callable[[Sequence[Any], Sequence[Any]], Any]
"""Says the next message: messages and tools of verifiers to text, calls, and whether a limit cut it."""


async def _rollout(env: VerifiersEnv, row: Mapping[str, Any], answer: Answer) -> Mapping[str, Any]:
    """Run one rollout and its rubric.

    Raises:
        EnvError: it failed, ran into its own time limit, or a reward function lost its service.
    """
    # What the class was made with may be said anew, with secrets that no class keeps.
    threads = _threads(env.env_id, _key(env.arguments)) if env.arguments else env.threads()
    with threads.taken(max(1, env.loops)) as thread:
        return await _rollout_in(thread, env, row, answer)


async def _rollout_in(
    thread: LoopThread, env: VerifiersEnv, row: Mapping[str, Any], answer: Answer
) -> Mapping[str, Any]:
    environment, raised = thread.made, list[Exception]()

    async def run() -> Mapping[str, Any]:
        _raised.set(raised)
        given = {"example_id": row["example_id"], "prompt": row["prompt"], "answer": row.get("answer") or ""}
        given |= {name: row[name] for name in ("info", "task") if row.get(name) is not None}
        return await environment.run_rollout(given, _client_class()(answer), "policy", {})

    output = await thread.run(run())
    lost = next((error for error in raised if is_infrastructure(error)), None)
    why = lost and f"a reward function or a tool raised {error_text(lost)}"
    if (error := output.get("error")) is not None:
        why = error.get("error_chain_repr", error) if isinstance(error, Mapping) else error
    if why is None and output.get("stop_condition") == "timeout_reached":
        why = f"it did not end within its own {environment.timeout_seconds:g} s"
    if why is not None:
        raise EnvError(f"verifiers:{env.env_id}: {why}") from lost
    if raised and env._model is not None:
        env.speaker.count("verifiers/reward_errors", len(raised))
    return output


@functools.lru_cache(maxsize=32)
def _threads(env_id: str, arguments: str) -> LoopThreads:
    """Loops for the rollouts of an environment: what blocks there stops no other environment, nor ours.

    Its sync functions run in threads beside them (`_beside`); a coroutine that blocks holds up the rollouts
    of its own loop. One loop unless more are asked for: what its module keeps for all copies belongs to one.
    """
    first = [_loaded(env_id, arguments)]
    return LoopThreads(lambda: first.pop() if first else _load(env_id, arguments))


class _Messages:
    """One conversation as verifiers has it, and as our model has it, message for message."""

    def __init__(self, speaker: Model, loop: asyncio.AbstractEventLoop, max_turns: int) -> None:
        self._speaker, self._loop, self._max_turns = speaker, loop, max_turns
        self._spoken: list[tuple[Any, Any]] = []
        self._results: dict[str, tuple[str, Message]] = {}
        self._talk: list[tuple[Any, Message]] = []
        self._cut = False
        self.last: str | None = None

    async def answer(self, messages: Sequence[Any], tools: Sequence[Any]) -> tuple[str, Sequence[Any], bool]:
        """The next message, sampled in the loop of the episode."""
        asked = asyncio.run_coroutine_threadsafe(self._complete(messages, tools), self._loop)
        return await asyncio.wrap_future(asked)

    async def _complete(
        self, messages: Sequence[Any], tools: Sequence[Any]
    ) -> tuple[str, Sequence[Any], bool]:
        if self._cut or len(self._spoken) >= self._max_turns:
            from verifiers.errors import OverlongPromptError

            raise OverlongPromptError("a limit of the episode leaves no room for another message")
        specs = [ToolSpec(t.name, t.description, dict(t.parameters), False, 0.0) for t in tools]
        self._note(messages)
        self._talk = self._ours(messages)
        said = await self._speaker.complete([ours for _, ours in self._talk], specs)
        self._cut = said.cut is not None
        text = str(said.message.get("content") or "")
        self._spoken.append((("assistant", text, tuple(call.id for call in said.tool_calls)), said))
        self._talk.append((self._spoken[-1][0], said.message))
        self.last = None if said.tool_calls or self._cut else said.text
        return text, said.tool_calls, self._cut

    def _note(self, messages: Sequence[Any]) -> None:
        """Record the results of the newest calls."""
        new = [m for m in messages if m.role == "tool" and m.tool_call_id not in self._results]
        calls = {call.id: (said, call) for _, said in self._spoken for call in said.tool_calls}
        for one in new:
            if one.tool_call_id in calls:
                said, call = calls[one.tool_call_id]
                result = ToolResult(call.id, call.name, _text(one.content), True, 0.0)
                [message] = self._speaker.acted(said, [result])
                self._results[call.id] = (result.text, message)

    def _ours(self, messages: Sequence[Any]) -> list[tuple[Any, Message]]:
        """The messages as our model has them, each with what verifiers shows of it.

        What the model said itself is given back exactly. Its messages may differ in what verifiers does not
        show, such as their thoughts, so equal ones are told apart by their place: where the history goes on
        from the last one by that, where it was edited by their order.
        """
        left = list(self._spoken)
        talk: list[tuple[Any, Message]] = []
        goes_on = True
        for place, message in enumerate(messages):
            key = _shown(message)
            goes_on = goes_on and place < len(self._talk) and self._talk[place][0] == key
            if goes_on:
                ours = self._talk[place][1]
            elif message.role == "tool" and message.tool_call_id in self._results:
                text, ours = self._results[message.tool_call_id]
                ours = ours if text == key[1] else {**ours, "content": key[1]}
            else:
                said = next((said for shown, said in left if shown == key), None)
                ours = said.message if said else {"role": message.role, "content": key[1]}
            left = [one for one in left if one[1].message is not ours]
            talk.append((key, ours))
        return talk


def _shown(message: Any) -> tuple[str, str, Any]:
    """What verifiers shows of a message: its role, its text, and the calls it makes or answers."""
    if message.role == "tool":
        return "tool", _text(message.content), message.tool_call_id
    calls = tuple(call.id for call in getattr(message, "tool_calls", None) or ())
    return message.role, _text(message.content), calls


def _text(content: Any) -> str:
    """Text of a message. EnvError where it has pictures or sounds."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [getattr(part, "text", None) for part in content]
    if None in parts:
        raise EnvError("verifiers: a message has content other than text, which is not supported here")
    return "".join(map(str, parts))


@functools.cache
def _client_class() -> type:
    """A client of verifiers whose answers come from a function."""
    from verifiers.clients.client import Client
    from verifiers.types import Response, ResponseMessage, ToolCall

    async def get_response(self: Any, prompt: Any, model: str, *_: Any, tools: Any = None, **__: Any) -> Any:
        text, calls, cut = await self.client(prompt, tools or ())
        called = [
            ToolCall(
                id=c.id, name=c.name, arguments=c.raw if c.arguments is None else json.dumps(c.arguments)
            )
            for c in calls
        ]
        message = ResponseMessage(
            content=text,
            tool_calls=called or None,
            finish_reason="length" if cut else "tool_calls" if called else "stop",
            is_truncated=cut,
        )
        return Response(id="policy", created=0, model=model, message=message)

    async def close(self: Any) -> None:
        pass

    unused = dict.fromkeys(Client.__abstractmethods__)
    return type("PolicyClient", (Client,), {**unused, "get_response": get_response, "close": close})


@functools.lru_cache(maxsize=32)
def _loaded(env_id: str, arguments: str) -> Any:
    """The environment that tells its rows, once in a process. Raises as `_load`."""
    return _load(env_id, arguments)


def _load(env_id: str, arguments: str) -> Any:
    """An environment.

    Raises:
        EnvNotFound: no such environment, or no `load_environment` in the file.
        EnvError: a version of the library that has none, a failing loader, rewards of groups.
    """
    import verifiers

    if not hasattr(verifiers, "load_environment") or not hasattr(verifiers, "SingleTurnEnv"):
        raise EnvError(
            f"verifiers {verifiers.__version__} is neither 0.2 nor 0.4: pip install 'agentrl[verifiers]'"
        )
    _leave_signals()
    given = json.loads(arguments)
    try:
        if env_id.endswith(".py"):
            load = getattr(load_file(Path(env_id)), "load_environment", None)
            if load is None:
                raise EnvNotFound(f"{env_id} defines no function load_environment")
            environment = load(**given)
        else:
            environment = verifiers.load_environment(env_id, **given)
    except EnvError:
        raise
    except Exception as error:
        kind = EnvNotFound if isinstance(error.__cause__, ModuleNotFoundError) else EnvError
        raise kind(masked(f"verifiers:{env_id} cannot be loaded: {error_text(error)}")) from error
    if environment.requires_group_rollouts:
        raise EnvError(f"verifiers:{env_id} rewards groups of rollouts, and an episode here stands alone")
    _prepare(environment)
    return environment


def _leave_signals() -> None:
    """Let its environments set no handlers of signals.

    They would take Ctrl-C and SIGTERM from the run, and cannot be made beside the main thread, where a
    notebook's run has its loop. What they close then, they close when the process ends as well.
    """
    from verifiers.envs import environment

    environment.signal = SimpleNamespace(**{**vars(signal), "signal": lambda *_: None})


def _prepare(environment: Any) -> None:
    """Let its sync tools and reward functions run in threads, and note what reward functions raise."""
    for inner in getattr(environment, "envs", ()):  # of an EnvGroup
        _prepare(inner)
    tools = getattr(environment, "tool_map", {})
    tools.update({name: _beside(tool, noted=False) for name, tool in tools.items()})
    _watch(environment.rubric)


def _watch(rubric: Any) -> None:
    for inner in getattr(rubric, "rubrics", ()):
        _watch(inner)
    weights = getattr(rubric, "weights", ())
    rubric.funcs[:] = [
        _beside(function, noted=bool(weight)) for function, weight in zip(rubric.funcs, weights, strict=True)
    ]


def _beside(function: Callable[..., Any], *, noted: bool) -> Callable[..., Any]:
    """The function, async; where it is not so already, in a thread. What it raises may be `noted`."""
    if getattr(function, "runs_beside", False):  # two environments may share a rubric
        return function

    @functools.wraps(function)
    async def beside(*arguments: Any, **named: Any) -> Any:
        call = functools.partial(function, *arguments, **named)
        try:
            if inspect.iscoroutinefunction(function):
                return await call()
            value, error = await CallThread("verifiers-function").start(call)
            if error is not None:
                # SystemExit would end the loop.
                raise error if isinstance(error, Exception) else RuntimeError(error_text(error))
            return await value if inspect.isawaitable(value) else value
        except Exception as error:
            # Meant for us, not for the model: a connection that was opened in another thread.
            if noted or (isinstance(error, sqlite3.ProgrammingError) and is_infrastructure(error)):
                _raised.get([]).append(error)
            raise

    beside.runs_beside = True  # pyrefly: ignore[missing-attribute]
    return beside


def verifiers_env(rest: str, settings: Mapping[str, Any]) -> type[RangedEnv]:
    """The environment of `env.name = "verifiers:NAME"` or `"verifiers:file.py"`, by the installed version."""
    import verifiers

    if tuple(map(int, verifiers.__version__.split(".")[:2])) >= (0, 4):
        from .verifiers_v1 import tasks_env

        return tasks_env(rest, settings)
    made, given = make_class(VerifiersEnv, {"env_id": rest, "__doc__": f"{rest} of verifiers."}, settings)
    key = _key(given.get("arguments", {}))
    made.loaded = classmethod(lambda cls: _loaded(cls.env_id, key))
    made.threads = classmethod(lambda cls: _threads(cls.env_id, key))
    made.example_rows = tuple(_rows(_loaded(rest, key), "train", 8))
    return made
