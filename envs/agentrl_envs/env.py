"""`Env`: the one class a user writes to define an environment, and the few methods the rollout calls on it.

An instance lives for one episode. It knows nothing of torch, tokenizers, policies or policy versions:
messages go out, tool calls and text come in, a checked reward comes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import difflib
import inspect
import math
import random
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from .class_check import check_class
from .errors import EnvError, GraderFailure, RewardError, RowError, SettingsError, ToolError
from .graders import Grader, Verdict, default_grader
from .messages import Finish, Message, Reward, ToolCall, ToolResult, ToolSpec, Transcript, is_content_part
from .plain import clean_text, plain
from .raised import Raised, error_text, place, shown
from .sessions import GuardedSandbox
from .speaking import Speaking
from .tools import tools_of
from .tools.running import run_tool
from .tools.schema import BadValue, coerce
from .user_code import CallThread, LimitExceeded, call

if TYPE_CHECKING:
    from agentrl_sandbox import Sandbox

    from .context import Context

__all__ = ["Env"]

_BASE_SETTINGS: dict[str, Any] = {
    "max_turns": int,
    "tool_timeout_s": float,
    "hook_timeout_s": float,
    "system_prompt": str | None,
}


class Env(Speaking):
    """Base class of environments. Write `prompt` and `reward`, mark tools with `@tool`; the rest is optional.

    You write (each sync or async): `setup()`, `prompt(row)`, `@tool` methods, `reward(row, answer)` or
    `reward(row, answer, episode)`, `reply(message)` and `close()`. Sync ones run in a thread, so they never
    block other episodes; always in the same one where they keep more than data in `self`, such as a
    connection. Annotated class attributes are settings: `digits: int = 3` makes `MyEnv(digits=4)` and
    `--env.settings.digits=4` work.

    Example:
        >>> class WordCount(Env):
        ...     def prompt(self, row):
        ...         return f"How many words are in {row['text']!r}?"
        ...     @tool
        ...     def letters(self, word: str) -> int:
        ...         "Count the letters of a word."
        ...         return len(word)
        ...     def reward(self, row, answer):
        ...         return self.grade(answer, len(row["text"].split()))
        >>> [spec.name for spec in WordCount.tool_specs()]
        ['letters']
    """

    max_turns: ClassVar[int] = 8
    """Turns of the model at most, tool-calling ones included."""
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Least and greatest reward; mapped to [0, 1] for the value tracker. A reward outside is an error."""
    tool_timeout_s: ClassVar[float] = 30.0
    """Limit of one tool call in seconds, unless `@tool(timeout_s=...)` says otherwise."""
    hook_timeout_s: ClassVar[float] = 120.0
    """Limit of `setup`, `prompt`, `reply`, `reward` and `close`, in seconds each."""
    required_fields: ClassVar[tuple[str, ...]] = ()
    """Fields every row must have; checked for the whole data set before anything runs."""
    example_rows: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """A few rows to try the class on (`agentrl check my_env.py`) where no data file is given."""
    told_errors: ClassVar[tuple[type[BaseException], ...]] = ()
    """Errors of tools that the model is told although they would fail the episode (`ConnectionError`)."""
    failing_errors: ClassVar[tuple[type[BaseException], ...]] = ()
    """Errors of tools that fail the episode although the model would be told (`AssertionError`)."""
    reads_variables: ClassVar[tuple[str, ...]] = ()
    """Settings in which the class itself reads `$NAME`, so that nobody does it before."""
    system_prompt: ClassVar[str | None] = None
    """System message. None: whatever the renderer says of itself; "": none at all."""

    def __init__(
        self,
        *,
        sandbox: Sandbox | None = None,
        grader: Grader | None = None,
        rng: random.Random | None = None,
        **settings: Any,
    ) -> None:
        self._sandbox = None if sandbox is None else GuardedSandbox(sandbox)
        self._grader = grader
        self.rng = rng if rng is not None else random.Random()
        self._thread = CallThread(f"env-{type(self).__name__}", keeps=self._keeps_thread)
        self._closing: asyncio.Future[None] | None = None
        self._verdict: Verdict | None = None
        self._turn = -1
        self._turn_rewards: dict[int, float] = {}
        self._agent_rewards: dict[str, float] = {}
        self._model = self._context = None
        # What an instance changes in place is its own, neither the class's nor that of other episodes.
        for name, value in (self._changeable_defaults() | self.check_settings(settings)).items():
            setattr(self, name, copy.deepcopy(value))

    # ---- what users write ----------------------------------------------------------------------------------

    def setup(self) -> Any:
        """Make what one episode needs (open a sandbox session, seed a game)."""

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """Text of the first user message, or a list of messages."""
        raise NotImplementedError(f"{type(self).__name__} needs a method prompt(self, row)")

    def reward(self, row: Mapping[str, Any], answer: str | None) -> Any:
        """Bool, number, or a dict of named numbers (their sum counts). May take a third argument: the
        Transcript.

        `answer` is the text of the last assistant message that called no tool; None when there was none.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method reward(self, row, answer)")

    def reward_turn(self, value: float, turn: int | None = None) -> None:
        """Reward one message of the model, for learners that credit turns (`estimator.kind = "turns"`).

        Call it from a tool, from `reply` or from `reward`; what a turn is given adds up. It is no part of the
        episode's reward. `turn` counts the model's messages from 0; None is the newest.

        Raises:
            RewardError: the value is not a finite number, or the model has not written that message.
        """
        where = self._turn if turn is None else turn
        who = f"{type(self).__name__}.reward_turn"
        number = math.nan
        with contextlib.suppress(TypeError, ValueError):
            number = float(value)
        if not math.isfinite(number):
            raise RewardError(f"{who} was given {shown(value)}; want a finite number")
        if not 0 <= where <= self._turn:
            raise RewardError(f"{who}: there is no turn {where}; the model has written {self._turn + 1}")
        self._turn_rewards[where] = self._turn_rewards.get(where, 0.0) + number

    @property
    def turn_rewards(self) -> Mapping[int, float]:
        """What `reward_turn` was given, by turn; turns that were given nothing are left out."""
        return self._turn_rewards

    def close(self) -> Any:
        """Release what `setup` made. Runs also when the episode was cancelled.

        Sandbox sessions close themselves.
        """

    @property
    def sandbox(self) -> GuardedSandbox:
        """Where programs run. EnvError when this instance was given none."""
        if self._sandbox is None:
            raise EnvError(
                f"{type(self).__name__} uses self.sandbox but was made without one; "
                "pass sandbox=open_sandbox(...) (from agentrl_sandbox)"
            )
        return self._sandbox

    @property
    def grader(self) -> Grader:
        """The grader of this instance, or the one all instances share."""
        return self._grader if self._grader is not None else default_grader()

    def grade(self, answer: str | None, gold: Any) -> Any:
        """Whether `answer` is right: a bool in a sync method, `await self.grade(...)` in an async one.

        `gold`: the gold answer, or a list of answers of which any will do. An answer that cannot be compared
        (`Verdict.undecided`) is wrong. Raises GraderFailure when the grader itself broke: such an episode is
        not learned from.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a thread without a loop, which is where sync methods run
            return self._decide(self.grader.grade_sync(answer, _golds(gold)))
        return self._grade(answer, _golds(gold))

    async def _grade(self, answer: str | None, gold: str | tuple[str, ...]) -> bool:
        return self._decide(await self.grader.grade(answer, gold))

    def _decide(self, verdict: Verdict) -> bool:
        self._verdict = verdict
        if verdict.failed:
            raise GraderFailure("the grader's process broke twice before it reached a verdict")
        return verdict.right

    # ---- what the class tells about itself -----------------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_class(cls, Env)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _METHODS:
            raise EnvError(f"self.{name} = ... would hide {type(self).__name__}.{name}; use another name")
        super().__setattr__(name, value)

    @classmethod
    def tool_specs(cls) -> tuple[ToolSpec, ...]:
        """The tools, in order of definition. Raises EnvError when a signature cannot be told to a model."""
        return tuple(bound.spec for bound in tools_of(cls, cls.tool_timeout_s).values())

    @classmethod
    def setting_types(cls) -> dict[str, Any]:
        """Settings this class takes, with their types: annotated attributes and the base ones."""
        types = dict(_BASE_SETTINGS)
        for base in reversed(cls.__mro__):
            if base not in (object, Env):
                types |= _own_types(base)
        return types

    @classmethod
    def _changeable_defaults(cls) -> dict[str, Any]:
        """Defaults of settings that could be changed in place, such as lists."""
        defaults = {name: getattr(cls, name, None) for name in cls.setting_types()}
        return {name: value for name, value in defaults.items() if type(value).__hash__ is None}

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings coerced to their types.

        Raises SettingsError naming every fault and the nearest known name.
        """
        known = cls.setting_types()
        faults: list[str] = []
        ready: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                near = difflib.get_close_matches(name, list(known), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(known)}"
                faults.append(f"unknown setting {name!r} ({hint})")
                continue
            try:
                ready[name] = coerce(value, known[name])
            except BadValue as error:
                faults.append(f"setting {name!r}: {error}")
        faults += [
            f"setting {n!r} is missing and has no default"
            for n in known
            if n not in ready and not hasattr(cls, n)
        ]
        if faults:
            raise SettingsError(f"{cls.__name__}: " + "; ".join(faults))
        return ready

    @classmethod
    def check_row(cls, row: Mapping[str, Any], where: str = "row") -> None:
        """Raise RowError when `row` lacks a required field; `where` says which row it is."""
        missing = [name for name in cls.required_fields if row.get(name) is None]
        if not missing:
            return
        near = {name: _column_like(name, row) for name in missing}
        pairs = ", ".join(f'"{name}": "{column}"' for name, column in near.items())
        flag = ",".join(f"{name}={column}" for name, column in near.items())
        hint = f"; say which columns they are with map={{{pairs}}} (--map {flag})"
        raise RowError(
            f"{where}: {cls.__name__} needs the field{'s' if len(missing) > 1 else ''} "
            f"{', '.join(map(repr, missing))}; the row has {', '.join(map(repr, row)) or 'no fields'}{hint}"
        )

    @classmethod
    def check_rows(cls, rows: Iterable[Mapping[str, Any]], where: str = "row") -> None:
        """Check every row; the error names the first faulty one, counted from 1."""
        for number, row in enumerate(rows, 1):
            cls.check_row(row, f"{where} {number}")

    # ---- what the rollout calls ----------------------------------------------------------------------------

    async def start(self, row: Mapping[str, Any]) -> list[Message]:
        """Run `setup` and `prompt`; the opening messages, the system message first if there is one."""
        self.check_row(row)
        await self._hook("setup", self.setup)
        if self.plays() and type(self).prompt is Env.prompt:
            return []
        opening = await self._hook("prompt", partial(self.prompt, row))
        messages = self._messages(opening)
        if self.system_prompt and not any(m["role"] == "system" for m in messages):
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages

    async def call_tools(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run the calls of one turn in order, neighbours marked parallel at once; results in call order.

        Wrong arguments and unknown tools come back as results with `ok=False`. Finish propagates, with what
        was finished before it in `finish.results`. Broken machinery raises an EnvError.
        """
        self._turn += 1
        bound = tools_of(type(self), self.tool_timeout_s)
        results: list[ToolResult] = []
        for batch in _batches(calls, lambda c: c.name in bound and bound[c.name].spec.parallel):
            tasks = self._thread.tasks
            threads = (
                [CallThread(f"tool-{c.name}", tasks) for c in batch] if len(batch) > 1 else [self._thread]
            )
            try:
                results += await _all(
                    [run_tool(self, bound, *job) for job in zip(batch, threads, strict=True)]
                )
            except Finish as finish:
                finish.results = results
                raise
            finally:
                for thread in threads if len(batch) > 1 else ():
                    thread.stop()
        return results

    @classmethod
    def plays(cls) -> bool:
        """Whether episodes are played by a method `play(row)` of the class rather than turn by turn."""
        return callable(getattr(cls, "play", None))

    async def play_out(self, row: Mapping[str, Any], limit_s: float) -> str | None:
        """Run `play(row)`, which asks the model as it likes and returns the answer.

        EnvError when it raised, or did not return within the limit.
        """
        play: Callable[..., Any] = getattr(self, "play")  # noqa: B009 - there is none in this class
        answer = await self._hook("play", partial(play, row), limit_s)
        return None if answer is None else clean_text(str(plain(answer)))

    async def compact_context(self, context: Context) -> None:
        """Run the user's `compact(context)`. EnvError when it raised."""
        compact: Callable[..., Any] = getattr(self, "compact")  # noqa: B009 - there is none in this class
        await self._hook("compact", partial(compact, context))

    def spoke(self) -> None:
        """Count a message that the model wrote outside of the conversation of the episode."""
        self._turn += 1

    async def respond(self, message: str) -> str | None:
        """What the environment answers to a turn that called no tool.

        None (also without `reply`) ends the episode.
        """
        self._turn += 1
        reply: Callable[[str], Any] | None = getattr(self, "reply", None)
        if reply is None:
            return None
        answer = await self._hook("reply", partial(reply, message))
        if answer is not None and not isinstance(answer, str):
            raise EnvError(
                f"{type(self).__name__}.reply returned {type(answer).__name__}; it must return text or None"
            )
        return None if answer is None else clean_text(answer)

    async def score(
        self,
        row: Mapping[str, Any],
        answer: str | None,
        transcript: Transcript,
        *,
        finish: Finish | None = None,
    ) -> Reward:
        """The checked reward of a finished episode. `finish`: what ended it, if the environment did.

        Raises RewardError outside `reward_range`, GraderFailure without a verdict, EnvError when `reward`
        raised.
        """
        self._before_score()
        self._verdict = None
        self._turn = max(self._turn, transcript.turns - 1)
        if finish is not None and finish.answer is not None:
            answer = finish.answer
        if finish is not None and finish.reward is not None:
            return self._checked_reward(finish.reward, "Finish(reward=...) of ")
        arguments: tuple[Any, ...] = (
            (row, answer, transcript) if _takes_episode(self.reward) else (row, answer)
        )
        return self._checked_reward(await self._hook("reward", partial(self.reward, *arguments)))

    async def aclose(self) -> None:
        """Run `close` and close the sandbox sessions, once, also while the caller is being cancelled."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._hook("close", self.close)
        finally:
            self._thread.end()
            if self._sandbox is not None:
                await self._sandbox.close_sessions()

    def _before_score(self) -> None:
        """For environments that lean on something: raises a failure where that was lost on the way."""

    # ---- inside --------------------------------------------------------------------------------------------

    async def _hook(self, name: str, function: Callable[..., Any], limit_s: float = 0.0) -> Any:
        """Run one of the user's methods with its limit.

        Anything unexpected becomes an EnvError that names it.
        """
        who = f"{type(self).__name__}.{name}"
        base = getattr(Env, name, None)
        if base is not None and getattr(type(self), name) is base and name in ("setup", "close"):
            return None  # not overridden: spare every episode a thread
        try:
            return await call(function, self._thread, limit_s or self.hook_timeout_s)
        except LimitExceeded:
            raise EnvError(f"{who} did not return within {limit_s or self.hook_timeout_s:g} s") from None
        except (Raised, ToolError) as raised:
            error = raised.error if isinstance(raised, Raised) else raised
            raise EnvError(f"{who} raised {error_text(error)} ({place(error)})") from error

    def _keeps_thread(self) -> bool:
        """Whether user code may have made something that only the thread that made it may use."""
        module = sys.modules.get(type(self).__module__)
        if any(isinstance(value, threading.local) for value in [*vars(module or self).values()]):
            return True
        room = [_DATA_LOOKED_AT]
        return not all(_is_data(value, room) for name, value in [*vars(self).items()] if name not in _OWN)

    def _messages(self, opening: Any) -> list[Message]:
        if isinstance(opening, str):
            return [{"role": "user", "content": clean_text(opening)}]
        several = isinstance(opening, list | tuple) and all(isinstance(m, Mapping) for m in opening)
        messages = [plain(m) for m in opening] if several else []
        if not messages or not all(map(_is_message, messages)):
            raise EnvError(
                f"{type(self).__name__}.prompt must return text or a list of messages "
                f'such as {{"role": "user", "content": "..."}}; it returned {shown(opening)}'
            )
        return messages

    def _checked_reward(self, reward: Any, giver: str = "") -> Reward:
        parts = dict(reward) if isinstance(reward, Mapping) else {"reward": reward}
        who = f"{giver}{type(self).__name__}" + ("" if giver else ".reward")
        if not parts:
            raise RewardError(f"{who} returned an empty dict; give at least one named part")
        numbers: dict[str, float] = {}
        for given, value in parts.items():
            name = clean_text(str(given))
            with contextlib.suppress(Exception):
                numbers[name] = math.nan if value is None or isinstance(value, str) else float(value)
            if not math.isfinite(numbers.get(name, math.nan)):
                raise RewardError(
                    f"{who} returned {shown(value)} for {name!r}; want a bool or a finite number"
                )
        total, (low, high) = sum(numbers.values()), self.reward_range
        if math.isfinite(total):  # `fsum` raises where it is not
            total = math.fsum(numbers.values())
        if not low - 1e-9 <= total <= high + 1e-9:
            raise RewardError(
                f"{who} returned {total:g} (parts {numbers}), outside reward_range ({low:g}, {high:g}); "
                f"set {type(self).__name__}.reward_range to the least and greatest reward"
            )
        verdict = None if self._verdict is None else self._verdict.value
        return Reward(value=min(max(total, low), high), parts=numbers, verdict=verdict)


def _is_message(message: Mapping[str, Any]) -> bool:
    """Whether a message has a role, and text or complete content parts."""
    content = message.get("content", ...)
    parts = isinstance(content, list) and all(map(is_content_part, content))
    return bool(message.get("role")) and (
        isinstance(content, str) or parts or (content is None and bool(message.get("tool_calls")))
    )


_OWN = {"_sandbox", "_grader", "rng", "_thread", "_closing", "_verdict", "_turn", "_turn_rewards"}
_OWN |= {"_model", "_context", "_agent_rewards"}
"""Attributes of every instance; none belongs to a thread."""

_DATA_LOOKED_AT = 200
"""Values of an instance that are looked at; where there are more, they are taken for anything."""


def _is_data(value: Any, room: list[int]) -> bool:
    """Whether a value is plain data (or ours): any thread may use it."""
    room[0] -= 1
    if room[0] < 0:
        return False
    if isinstance(value, _PLAIN) or type(value).__module__.partition(".")[0] in _OURS:
        return True
    if type(value) is dict:
        return all(_is_data(one, room) for one in [*value.values()])
    return type(value) in (list, tuple, set, frozenset) and all(_is_data(one, room) for one in [*value])


_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), random.Random, type)
_OURS = ("agentrl_envs", "agentrl_sandbox", "numpy")


_METHODS = {
    name
    for name, value in (vars(Speaking) | vars(Env)).items()
    if inspect.isroutine(value) or isinstance(value, property)
}
_METHODS |= {"reply", "play", "compact"}
_METHODS = {name for name in _METHODS if not name.startswith("_")}


_USUAL = {
    "problem": ("question", "prompt", "input", "query", "instruction", "problem_text"),
    "answer": ("final", "final_answer", "target", "gold", "label", "solution", "output", "expected_answer"),
}
"""Other names that data sets give to fields."""


def _column_like(name: str, row: Mapping[str, Any]) -> str:
    """The column of a row that may be meant by a missing field; COLUMN where none looks like it."""
    usual = [column for column in _USUAL.get(name, ()) if column in row]
    return next(iter(usual or difflib.get_close_matches(name, list(row), n=1)), "COLUMN")


def _golds(gold: Any) -> str | tuple[str, ...]:
    return tuple(str(one) for one in gold) if isinstance(gold, list | tuple) and gold else str(gold)


@lru_cache(maxsize=256)
def _own_types(cls: type) -> Mapping[str, Any]:
    """Types of the settings that a class adds to those of its bases; every instance asks for them."""
    names = [name for name in vars(cls).get("__annotations__", ()) if not name.startswith("_")]
    hints = typing.get_type_hints(cls, include_extras=True) if names else {}
    return {
        name: hints[name]
        for name in names
        if typing.get_origin(hints[name]) is not ClassVar and hints[name] is not ClassVar
    }


def _takes_episode(reward: Callable[..., Any]) -> bool:
    parameters = inspect.signature(reward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _batches(calls: Sequence[ToolCall], parallel: Callable[[ToolCall], bool]) -> list[list[ToolCall]]:
    batches: list[list[ToolCall]] = []
    previous = False
    for one in calls:
        now = parallel(one)
        if now and previous:
            batches[-1].append(one)
        else:
            batches.append([one])
        previous = now
    return batches


async def _all(runs: list[Any]) -> list[ToolResult]:
    """Results in order; when one raises, the others are cancelled before it is passed on."""
    if len(runs) == 1:
        return [await runs[0]]
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
