"""JSON schemas from Python type hints, and arguments checked against the hints.

Models write arguments loosely ("3" for 3, a list as a JSON string), so values are coerced where nothing is
lost and refused with a sentence the model can act on where something would be. Knows nothing of tools or
environments.
"""

from __future__ import annotations

import enum
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from ..plain import read_json

__all__ = ["BadValue", "coerce", "schema_of"]

_SCALARS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_LISTS = (list, tuple, set, frozenset, Sequence)
_MAPPINGS = (dict, Mapping)


class BadValue(ValueError):
    """A value does not fit its type; the message says what was expected and what came."""


def schema_of(hint: Any) -> dict[str, Any]:
    """JSON schema of a type hint. Raises TypeError for a hint that has no JSON form."""
    if hint is Any or hint is object:
        return {}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        note = next((a for a in args[1:] if isinstance(a, str)), None)
        return schema_of(args[0]) | ({"description": note} if note else {})
    if origin is Literal:
        return {"enum": list(args)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(arg) for arg in args]}
    if hint in _LISTS or origin in _LISTS:
        return _array_schema(hint, origin, args)
    if hint in _MAPPINGS or origin in _MAPPINGS:
        return {"type": "object"} | ({"additionalProperties": schema_of(args[1])} if len(args) == 2 else {})
    raise TypeError(
        f"{hint!r} has no JSON form; use str, int, float, bool, list, dict, Literal, an Enum or a union"
    )


def _array_schema(hint: Any, origin: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    if (origin or hint) is tuple and args and args[-1] is not Ellipsis:
        items = [schema_of(arg) for arg in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    return {"type": "array"} | ({"items": schema_of(args[0])} if args else {})


def coerce(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it. Raises BadValue when it does not fit."""
    if hint is Any or hint is object:
        return value
    if hint in _SCALARS:
        return _SCALAR_RULES[hint](value)
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return coerce(value, args[0])
    if origin is Literal:
        return _coerce_choice(value, {choice: choice for choice in args})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value if isinstance(value, hint) else _coerce_choice(value, {m.value: m for m in hint})
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args)
    if hint in _LISTS or origin in _LISTS:
        return _coerce_list(value, origin or hint, args)
    return _coerce_mapping(value, args)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _to_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    raise BadValue(f"expected a string, got {_shown(value)}")


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 400:
        try:
            return int(value)
        except ValueError:
            pass
    raise BadValue(f"expected an integer, got {_shown(value)}")


def _to_float(value: Any) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise BadValue(f"expected a finite number, got {_shown(value)}")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise BadValue(f"expected true or false, got {_shown(value)}")


def _to_none(value: Any) -> None:
    if value is not None:
        raise BadValue(f"expected null, got {_shown(value)}")


_SCALAR_RULES: dict[Any, Any] = {
    str: _to_str,
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    type(None): _to_none,
}


def _coerce_choice(value: Any, choices: dict[Any, Any]) -> Any:
    for choice, result in choices.items():
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return result
    for choice, result in choices.items():
        if isinstance(value, str) and value.strip() == str(choice):
            return result
    raise BadValue(f"expected one of {', '.join(map(repr, choices))}, got {_shown(value)}")


def _coerce_union(value: Any, options: tuple[Any, ...]) -> Any:
    # An exact match first, so that "3" stays text under `str | int` and 3 stays a number under `float | str`.
    for option in options:
        if isinstance(option, type) and type(value) is option:
            return value
    for option in options:
        try:
            return coerce(value, option)
        except BadValue:
            continue
    names = " or ".join(_SCALARS.get(option, str(option)) for option in options)
    raise BadValue(f"expected {names}, got {_shown(value)}")


def _from_json(value: Any, kind: type, name: str) -> Any:
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError:
            raise BadValue(f"expected {name}, got {_shown(value)}") from None
    if not isinstance(value, kind):
        raise BadValue(f"expected {name}, got {_shown(value)}")
    return value


def _coerce_list(value: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    items = list(value) if isinstance(value, tuple | set | frozenset) else _from_json(value, list, "a list")
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise BadValue(f"expected {len(args)} items, got {len(items)}")
        return tuple(coerce(item, hint) for item, hint in zip(items, args, strict=True))
    if args:
        items = [_inside(f"item {i}", item, args[0]) for i, item in enumerate(items)]
    return items if kind in (list, Sequence) else kind(items)


def _coerce_mapping(value: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    items = _from_json(dict(value) if isinstance(value, Mapping) else value, dict, "an object")
    if len(args) == 2:
        items = {coerce(k, args[0]): _inside(f"key {k!r}", v, args[1]) for k, v in items.items()}
    return items


def _inside(where: str, value: Any, hint: Any) -> Any:
    try:
        return coerce(value, hint)
    except BadValue as error:
        raise BadValue(f"{where}: {error}") from None
