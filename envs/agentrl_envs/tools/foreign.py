"""Tools that are known by a JSON schema instead of Python hints: those of MCP servers and of other libraries.

References are written out, so that every chat template and every renderer can show the schema; where one
comes back to itself, the inner one is shown as its bare type. Knows nothing of who sends schemas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EnvError
from .decorator import ToolMark, set_mark
from .schema_hints import as_schema

__all__ = ["SchemaTool", "schema_tool", "schema_tools", "tool_name", "written_out"]

_MOST_NODES = 2_000
"""Parts of one schema once its references are written out; what is longer fills the context of a model."""


def schema_tool(
    name: str,
    description: str,
    schema: Mapping[str, Any],
    function: Callable[..., Any],
    *,
    parallel: bool = False,
    timeout_s: float | None = None,
) -> Callable[..., Any]:
    """Mark a method as a tool whose parameters a JSON schema describes, as `@tool` does by hints.

    Args:
        name: what the model calls it; see `tool_name`.
        description: told to the model.
        schema: of an object, whose properties are the parameters.
        function: called as `function(self, **arguments)`, sync or async.
        parallel: as in `@tool`.
        timeout_s: as in `@tool`.

    Raises:
        EnvError: the schema describes no object, refers to what is not in it, or is too large.
    """
    parameters = written_out(schema, f"tool {name!r}")
    if parameters.get("type", "object") != "object" or not isinstance(
        parameters.get("properties", {}), Mapping
    ):
        raise EnvError(
            f"tool {name!r}: its schema must be that of an object with properties, got {parameters!r:.200}"
        )
    properties = {key: as_schema(value) for key, value in parameters.get("properties", {}).items()}
    required = [key for key in parameters.get("required", ()) if key in properties]
    whole = {**parameters, "type": "object", "properties": properties, "required": required}
    return set_mark(function, ToolMark(name, parallel, timeout_s, description, whole))


@dataclass(frozen=True, slots=True)
class SchemaTool:
    """A tool of somebody else's; see `schema_tool`."""

    name: str
    """What its owner calls it."""
    description: str
    schema: Mapping[str, Any]
    function: Callable[..., Any]
    parallel: bool = False
    timeout_s: float | None = None


def schema_tools(owner: str, tools: Iterable[SchemaTool]) -> dict[str, Callable[..., Any]]:
    """The methods of a class that has these tools, by attribute.

    Raises:
        EnvError: two of them have one name for a model, or as of `schema_tool`; names the `owner`.
    """
    methods: dict[str, Callable[..., Any]] = {}
    for one in tools:
        name = tool_name(one.name)
        if f"tool_{name}" in methods:
            raise EnvError(f"{owner} has two tools that a model would call {name!r}")
        methods[f"tool_{name}"] = schema_tool(
            name,
            one.description or one.name,
            one.schema,
            one.function,
            parallel=one.parallel,
            timeout_s=one.timeout_s,
        )
    return methods


def tool_name(given: str) -> str:
    """A name that every renderer can write: other characters than letters, digits, `_` and `-` become `_`."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", given)[:64] or "tool"
    return name if name[0].isalpha() or name[0] == "_" else f"_{name}"[:64]


def written_out(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schema without references. `where` names it in errors.

    Raises:
        EnvError: a reference leads nowhere or out of the schema, or the result has too many parts.
    """
    room = [_MOST_NODES]

    def node(value: Any, path: tuple[str, ...]) -> Any:
        room[0] -= 1
        if room[0] < 0:
            raise EnvError(
                f"{where}: its schema has more than {_MOST_NODES:,} parts with references written out"
            )
        if isinstance(value, list):
            return [node(one, path) for one in value]
        if not isinstance(value, Mapping):
            return value
        shown = [(key, one) for key, one in value.items() if key not in _NOT_SHOWN]
        rest = {key: named(one, path) if key == "properties" else node(one, path) for key, one in shown}
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return _merged(rest)
        target = _target(schema, reference, where)
        if reference in path or reference == "#":
            return {
                "type": target.get("type", "object"),
                "description": "as the one that it stands in",
                **rest,
            }
        return {**node(target, (*path, reference)), **rest}

    def named(value: Any, path: tuple[str, ...]) -> Any:
        """Properties, whose keys are names and no keywords."""
        return {key: node(one, path) for key, one in value.items()} if isinstance(value, Mapping) else value

    return node(schema, ())


_NOT_SHOWN = ("$ref", "$defs", "definitions", "$schema", "$id")


def _target(schema: Mapping[str, Any], reference: str, where: str) -> Mapping[str, Any]:
    if not reference.startswith("#"):
        raise EnvError(
            f"{where}: its schema refers to {reference!r:.200}, outside of itself; write it into it"
        )
    found: Any = schema
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        found = found.get(step) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise EnvError(f"{where}: its schema refers to {reference!r:.200}, which is not in it")
    return found


def _merged(schema: dict[str, Any]) -> dict[str, Any]:
    """An `allOf` of objects as one object; anything else as it is."""
    parts = schema.get("allOf")
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        return schema
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in parts:
        for key, value in part.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, ()), *value]
            else:
                merged.setdefault(key, value)
    return merged
