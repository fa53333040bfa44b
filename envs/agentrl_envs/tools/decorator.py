"""`@tool`: a method (or function) the model may call, its schema, and checking of the arguments of a call.

The description is the docstring's first paragraph, parameters are described by the docstring's Args section,
types come from the hints. Knows nothing of models or message formats; running a tool is `env.py`'s business.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import marshal
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from ..errors import EnvError
from ..messages import ToolSpec
from .schema import BadValue, coerce, schema_of
from .schema_hints import hint_of

__all__ = ["BoundTool", "bind_arguments", "describe_tool", "tool", "tools_of"]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__agentrl_tool__"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class ToolMark:
    """What `@tool(...)` was given."""

    name: str | None = None
    parallel: bool = False
    timeout_s: float | None = None
    description: str = ""
    """Told to the model, where it is not the docstring."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of the parameters, where type hints do not tell them."""


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool of one environment class: its spec, and what checking its arguments needs."""

    spec: ToolSpec
    attribute: str
    hints: Mapping[str, Any]
    required: tuple[str, ...]
    is_async: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Lists, dicts and sets, which a call could change: each call is given a copy."""


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *, name: str | None = None, parallel: bool = False, timeout_s: float | None = None
) -> Callable[[F], F]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    parallel: bool = False,
    timeout_s: float | None = None,
) -> Any:
    """Mark a method as a tool: `@tool`, or `@tool(parallel=True, timeout_s=5)`.

    Args:
        function: the method, where the decorator is used without brackets.
        name: what the model calls it; by default its own.
        parallel: calls of one turn may run at once; a sync tool then runs in a thread of its own.
        timeout_s: limit of one call in seconds, in place of the class's `tool_timeout_s`.

    Raises:
        EnvError: the limit is not above 0, or what is marked cannot be called.

    Example:
        >>> class Shop(Env):
        ...     @tool
        ...     async def price(self, name: str, count: int = 1) -> float:
        ...         "The price of some things."
        ...         return 2.5 * count
        >>> Shop.tool_specs()[0].parameters["required"]
        ['name']
    """
    if timeout_s is not None and not timeout_s > 0:
        raise EnvError(f"@tool(timeout_s={timeout_s}): the limit must be more than 0 seconds")

    def mark(marked: F) -> F:
        if not callable(marked):
            raise EnvError(f"@tool belongs on a function, not on {marked!r}")
        return set_mark(marked, ToolMark(name, parallel, timeout_s))

    return mark if function is None else mark(function)


def set_mark(function: F, mark: ToolMark) -> F:
    """Make a function a tool."""
    setattr(function, _MARK, mark)
    return function


def mark_of(function: Any) -> ToolMark | None:
    """The mark `@tool` left, or None."""
    return getattr(function, _MARK, None)


def describe_tool(function: Callable[..., Any], attribute: str, default_timeout_s: float) -> BoundTool:
    """Build the spec of a marked function. Raises EnvError when its signature cannot be told to a model."""
    mark = mark_of(function) or ToolMark()
    name = mark.name or attribute
    if not _NAME.match(name):
        raise EnvError(f"tool name {name!r}: letters, digits, _ and - only, at most 64 characters")
    is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
    if mark.schema is not None:
        return _of_schema(name, attribute, mark, is_async, default_timeout_s)
    from docstring_parser import parse

    parsed = parse(inspect.getdoc(function) or "")
    texts = {p.arg_name: (p.description or "").strip() for p in parsed.params}
    properties: dict[str, Any] = {}
    required: list[str] = []
    defaults: dict[str, Any] = {}
    hints = _hints(function, name)
    for parameter in _parameters(function, name):
        hint = hints.setdefault(parameter.name, Any)
        try:
            schema = schema_of(hint)
        except TypeError as error:
            raise EnvError(f"tool {name!r}, parameter {parameter.name!r}: {error}") from None
        if texts.get(parameter.name):
            schema = schema | {"description": texts[parameter.name]}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
        elif _is_plain(parameter.default):
            schema = schema | {"default": parameter.default}
        elif isinstance(parameter.default, list | dict | set):
            defaults[parameter.name] = parameter.default
        properties[parameter.name] = schema
    parameters = {"type": "object", "properties": properties, "required": required}
    paragraphs = [parsed.short_description or "", parsed.long_description or ""]
    spec = ToolSpec(
        name=name,
        description="\n".join(p for p in paragraphs if p) or name,
        parameters=parameters | {"additionalProperties": False},
        parallel=mark.parallel,
        timeout_s=mark.timeout_s or default_timeout_s,
    )
    hints = {key: hints[key] for key in properties}
    return BoundTool(spec, attribute, hints, tuple(required), is_async, defaults)


def _of_schema(
    name: str, attribute: str, mark: ToolMark, is_async: bool, default_timeout_s: float
) -> BoundTool:
    schema = dict(mark.schema or {})
    timeout_s = mark.timeout_s or default_timeout_s
    spec = ToolSpec(name, mark.description or name, schema, mark.parallel, timeout_s)
    hints = {key: hint_of(value) for key, value in schema["properties"].items()}
    return BoundTool(spec, attribute, hints, tuple(schema["required"]), is_async)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError) as error:
        raise EnvError(
            f"tool {name!r}: its type hints cannot be read ({error}); import the types at module level"
        ) from error


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    bad = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    for parameter in parameters:
        if parameter.kind in bad:
            raise EnvError(
                f"tool {name!r}: parameter {str(parameter)!r} has no place in a schema; "
                "give every parameter a name and a type"
            )
    return parameters


@functools.lru_cache(maxsize=256)
def tools_of(cls: type, default_timeout_s: float) -> dict[str, BoundTool]:
    """Tools of a class by the name the model uses, in order of definition, base classes first."""
    found: dict[str, BoundTool] = {}
    attributes = {name: None for base in reversed(cls.__mro__) for name in vars(base)}
    for attribute in attributes:
        function = inspect.getattr_static(cls, attribute)
        function = function.__func__ if isinstance(function, staticmethod) else function
        if mark_of(function) is None:
            continue
        described = describe_tool(function, attribute, default_timeout_s)
        if described.spec.name in found:
            raise EnvError(f"{cls.__name__}: two tools are called {described.spec.name!r}")
        found[described.spec.name] = described
    return found


def bind_arguments(bound: BoundTool, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of a call, coerced to the hints. Raises BadValue with every fault, in words for the model."""
    if not isinstance(arguments, Mapping):
        raise BadValue(f"the arguments must be an object with the keys {_list(bound.hints)}")
    faults = [f"missing argument {key!r}" for key in bound.required if key not in arguments]
    ready: dict[str, Any] = {}
    for key, value in _own_copy(arguments).items():
        if key not in bound.hints and bound.spec.parameters.get("additionalProperties", False) is not False:
            ready[key] = value
            continue
        if key not in bound.hints:
            near = difflib.get_close_matches(str(key), list(bound.hints), n=1)
            faults.append(f"unknown argument {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
            continue
        try:
            ready[key] = coerce(value, bound.hints[key])
        except BadValue as error:
            faults.append(f"argument {key!r}: {error}")
    if faults:
        raise BadValue("; ".join(faults) + f". Arguments of {bound.spec.name}: {_list(bound.hints)}")
    return {**copy.deepcopy(dict(bound.defaults)), **ready}


def _own_copy(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a tool changes in its arguments must not change the record of its call."""
    try:
        return marshal.loads(marshal.dumps(dict(arguments)))  # as `deepcopy`, in a twentieth of its time
    except ValueError:
        return arguments  # not from JSON


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "(none)"
