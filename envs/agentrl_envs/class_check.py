"""What is wrong with an environment class, told when the class is made rather than in every episode.

Names that a user gives (tools, settings, attributes) must not be those by which an environment is run. Knows
nothing of rows, or of what the methods do.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator
from typing import Any, ClassVar

from .errors import EnvError
from .tools.decorator import mark_of

__all__ = ["check_class"]

_HOOKS = {"setup": (0,), "prompt": (1,), "reward": (2, 3), "reply": (1,), "close": (0,)}
_HOOKS |= {"play": (1,), "compact": (1,)}
"""Methods that a user writes, and how many arguments each is given besides `self`."""


def check_class(cls: type, base: type) -> None:
    """Raise EnvError with every fault of `cls`, a direct or indirect subclass of `base` (which is Env)."""
    faults = [*_attributes(cls), *(fault for name in vars(cls) for fault in _name_faults(cls, base, name))]
    faults += [
        fault for name in vars(cls).get("__annotations__", {}) for fault in _setting_faults(cls, base, name)
    ]
    if faults:
        raise EnvError("; ".join(dict.fromkeys(faults)))


def _attributes(cls: Any) -> Iterator[str]:
    try:
        low, high = map(float, cls.reward_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        yield f"{cls.__name__}.reward_range = {cls.reward_range}: want (least, greatest), both finite"
    if isinstance(cls.required_fields, str):
        yield f"{cls.__name__}.required_fields must be a tuple of names: ({cls.required_fields!r},)"


def _name_faults(cls: type, base: type, name: str) -> Iterator[str]:
    given, there = inspect.getattr_static(cls, name), inspect.getattr_static(base, name, None)
    function = given.__func__ if isinstance(given, staticmethod | classmethod) else given
    if name.startswith("__") or (there is None and name not in _HOOKS):
        return
    if mark_of(function) is not None:
        yield (
            f"{cls.__name__}.{name}: a tool cannot be called {name!r} in Python, because agentrl calls "
            f'that; write @tool(name="{name}") def {name}_tool(...): the model still calls it {name!r}'
        )
    elif name in _HOOKS:
        yield from _hook_faults(cls, name, given)
    elif name in _properties(base) or (inspect.isroutine(there) and not _overrides(given, there)):
        yield (
            f"{cls.__name__}.{name}: agentrl itself uses this name to run an episode; call it something "
            f"else, such as {name}_ or my_{name}"
        )


def _hook_faults(cls: type, name: str, given: Any) -> Iterator[str]:
    function = given.__func__ if isinstance(given, staticmethod | classmethod) else given
    if not callable(function):
        yield (
            f"{cls.__name__}.{name} is {type(given).__name__}, and agentrl calls it as a method; "
            f"use another name, such as {name}_text"
        )
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    own = 0 if isinstance(given, staticmethod) else 1
    if not any(_takes(signature, own + count) for count in _HOOKS[name]):
        want = ["", "row", "row, answer", "row, answer, episode"][_HOOKS[name][0]]
        want = {"reply": "message", "compact": "context"}.get(name, want)
        yield (
            f"{cls.__name__}.{name}{signature} cannot be called as it will be; "
            f"write def {name}({', '.join(filter(None, ('self', want)))})"
        )


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _overrides(given: Any, there: Any) -> bool:
    """Whether a method takes the place of the base's on purpose: of its kind, and with its parameters."""
    given, there = (getattr(one, "__func__", one) for one in (given, there))
    if not callable(given) or inspect.iscoroutinefunction(given) != inspect.iscoroutinefunction(there):
        return False
    names = [list(inspect.signature(one).parameters) for one in (given, there)]
    return names[0] == names[1] or any(
        parameter.kind is parameter.VAR_POSITIONAL
        for parameter in inspect.signature(given).parameters.values()
    )


def _setting_faults(cls: type, base: type, name: str) -> Iterator[str]:
    known = inspect.getattr_static(base, name, None)
    hint = vars(cls)["__annotations__"][name]
    class_variable = typing.get_origin(hint) is ClassVar or hint is ClassVar or "ClassVar" in str(hint)
    taken = name in _HOOKS or name in ("rng", "sandbox", "grader") or inspect.isroutine(known)
    taken = taken or isinstance(known, property | classmethod)
    if taken and not class_variable:
        yield (
            f"{cls.__name__}.{name}: a setting cannot be called {name!r}, because agentrl uses that; call it "
            f"something else, such as {name}_setting"
        )


def _properties(base: type) -> set[str]:
    return {name for name, value in vars(base).items() if isinstance(value, property)}
