"""Type hints for what a JSON schema allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Union

__all__ = ["as_schema", "hint_of"]

_NAMED = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}


def as_schema(schema: Any) -> dict[str, Any]:
    """A schema may be `true`, which allows everything."""
    return dict(schema) if isinstance(schema, Mapping) else {}


_MADE_OF: Mapping[str, Any] = {"literal": Literal, "union": Union, "list": list, "dict": dict}
"""What a hint is made of by a subscript, which a type checker would take for an annotation."""


def hint_of(schema: Mapping[str, Any]) -> Any:
    """The type hint by which an argument is read; what a hint cannot say is left to the tool's own check."""
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and choices:
        plain = all(isinstance(one, str | int | float | bool | None) for one in choices)
        return _MADE_OF["literal"][tuple(choices)] if plain else Any
    several = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(several, list) and several:
        return _MADE_OF["union"][tuple(hint_of(as_schema(one)) for one in several)]
    kind = schema.get("type")
    if isinstance(kind, list):
        return _MADE_OF["union"][tuple(hint_of({**schema, "type": one}) for one in kind)] if kind else Any
    if kind == "array":
        items = schema.get("items")
        return _MADE_OF["list"][hint_of(items)] if isinstance(items, Mapping) else list
    if kind == "object":
        more = schema.get("additionalProperties")
        closed = schema.get("properties") or not isinstance(more, Mapping)
        return dict if closed else _MADE_OF["dict"][str, hint_of(as_schema(more))]
    return _NAMED.get(kind, Any) if isinstance(kind, str) else Any
