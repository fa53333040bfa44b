"""`env.name = "trl:file.py:Class"`: an `environment_factory` class of TRL, or its plain tool functions.

The class is read as TRL reads it: `reset(**row)`, public methods as tools, `get_reward()`. TRL itself is not
imported. Knows nothing of what the tools do.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from ..errors import EnvError, EnvNotFound
from ..messages import Message, Transcript, text_of
from ..registry import load_file
from ..tools import tool
from .making import RangedEnv, make_class

__all__ = ["TrlEnv", "trl_env"]

_PROMPTS = ("prompt", "problem", "question")
_OWN = ("reset", "get_reward")


class TrlEnv(RangedEnv):
    """A task of TRL: its tools, its reset, its reward."""

    factory: ClassVar[Any] = None
    """The class of the environment; None where there are only functions."""
    graders: ClassVar[tuple[Callable[..., Any], ...]] = ()

    reward_funcs: list[str] = []  # noqa: RUF012 - a setting; each instance has its own
    """Names of reward functions in the same file; their rewards are added to that of the class."""

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """The row's prompt, and what `reset` says at the end of its last message."""
        if self.factory is None:
            return _opening(row, None)
        # Not made with the instance: a constructor may take long, and what it opens keeps to one thread.
        self._other = type(self).factory()
        said = self._other.reset(**_fitting(self._other.reset, row))
        return _after([said], lambda values: _opening(row, values[0]))

    def reward(self, row: Mapping[str, Any], answer: str | None, episode: Transcript | None = None) -> Any:
        """`get_reward()`, and the reward functions, each a part of its own."""
        names, given = [], []
        if hasattr(self.factory, "get_reward"):
            names.append(_called(self.factory))
            given.append(self._other.get_reward())
        columns = {name: [value] for name, value in row.items() if name not in ("prompt", "completion")}
        columns |= {"prompts": [_prompt(row)], "completions": [_completion(row, answer, episode)]}
        if self.factory is not None:
            columns["environments"] = [self._other]
        for grader in type(self).graders:
            names.append(_called(grader))
            given.append(grader(**_fitting(grader, columns)))
        return _after(given, lambda values: _parts(names, values, hasattr(self.factory, "get_reward")))


def _prompt(row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in _PROMPTS if row.get(name) is not None), "")


def _opening(row: Mapping[str, Any], said: Any) -> list[Message]:
    given = _prompt(row)
    messages = (
        [{"role": "user", "content": given}] if isinstance(given, str) else [dict(one) for one in given]
    )
    if said is not None and not isinstance(said, str):
        raise EnvError(f"reset returned {type(said).__name__}; want text or None")
    messages[-1]["content"] = text_of(messages[-1]) + (said or "")
    return messages


def _completion(row: Mapping[str, Any], answer: str | None, episode: Transcript | None) -> Any:
    """What the model wrote: text where the prompt is text, else messages with the results of tools."""
    if isinstance(_prompt(row), str):
        return answer or ""
    messages = episode.messages if episode is not None else ()
    roles = [message["role"] for message in messages]
    written = messages[roles.index("assistant") :] if "assistant" in roles else ()
    return [dict(one) for one in written] or [{"role": "assistant", "content": answer or ""}]


def _parts(names: Sequence[str], values: Sequence[Any], of_class: bool) -> dict[str, Any]:
    """Rewards by name. A reward function gives a list of one, for a batch of one; None says nothing."""
    parts: dict[str, Any] = {}
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        if number > 0 or not of_class:
            if not isinstance(value, list | tuple) or len(value) != 1:
                raise EnvError(
                    f"{name} returned {value!r:.200} for one completion; want a list of one number"
                )
            [value] = value
        if value is not None:
            parts[name] = value
    if not parts:
        raise EnvError("no reward: every reward function returned None")
    return parts


def _after(values: list[Any], function: Callable[[list[Any]], Any]) -> Any:
    """`function` of the values; a coroutine where one of them has to be awaited."""
    if not any(map(inspect.isawaitable, values)):
        return function(values)

    async def later() -> Any:
        return function([await one if inspect.isawaitable(one) else one for one in values])

    return later()


def trl_env(rest: str, settings: Mapping[str, Any]) -> type[TrlEnv]:
    """The environment of `env.name = "trl:file.py:Class"` or `"trl:file.py:tool,tool"`.

    Raises:
        EnvNotFound: no such file, class or function.
        EnvError: a class without `reset`, a tool that cannot be described, or no reward.
    """
    where, _, names = rest.rpartition(":")
    if not where:
        raise EnvNotFound(f'"trl:{rest}": want trl:file.py:Class, or trl:file.py:tool,tool for functions')
    module = load_file(Path(where)) if where.endswith(".py") else _module(where)
    named = [_member(module, name.strip(), where) for name in names.split(",")]
    classes = [one for one in named if isinstance(one, type)]
    if len(classes) > 1 or (classes and not callable(getattr(classes[0], "reset", None))):
        raise EnvError(
            f"trl:{rest}: want one class with a method reset(self, **row), and functions beside it"
        )
    body: dict[str, Any] = {"factory": classes[0] if classes else None, "__module__": module.__name__}
    body["__doc__"] = inspect.getdoc(classes[0]) if classes else None
    for one in named:
        body |= _methods(one) if isinstance(one, type) else {f"tool_{_called(one)}": staticmethod(_tool(one))}
    made, given = make_class(TrlEnv, body, settings)
    made.graders = tuple(_member(module, name, where) for name in given.get("reward_funcs", ()))
    if not made.graders and not hasattr(made.factory, "get_reward"):
        raise EnvError(
            f"trl:{rest} has no reward: the class needs get_reward(self), or name functions of {where} in "
            "env.settings.reward_funcs"
        )
    made.tool_specs()
    return made


def _methods(cls: type) -> dict[str, Any]:
    """The public methods of an environment as tools of ours, which pass calls on to the episode's object."""
    found = inspect.getmembers(cls, inspect.isfunction)
    return {f"tool_{n}": _passed_on(f) for n, f in found if n not in _OWN and not n.startswith("_")}


def _passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Any, **arguments: Any) -> Any:
        return function(self._other, **arguments)

    return _tool(call)


def _tool(function: Callable[..., Any]) -> Callable[..., Any]:
    return tool(name=_called(function))(function)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise EnvNotFound(f"no module {error.name!r} (trl:{name}: want a file.py or a module)") from error


def _member(module: ModuleType, name: str, where: str) -> Any:
    found = getattr(module, name, None)
    if callable(found):
        return found
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known) or 'none'}"
    raise EnvNotFound(f"{where} has no class or function {name!r}; {hint}")


def _fitting(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(given)
    return {p.name: given[p.name] for p in parameters if p.name in given}


def _called(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)
