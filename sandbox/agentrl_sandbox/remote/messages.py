"""Results and limits as JSON: what the server of a remote pool and its client say to each other.

Both ends check what they read. Knows nothing of HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..limits import Limits
from ..result import File, Result, Status

PROTOCOL = 1


class BadMessage(ValueError):
    """A message is not of the form that was agreed; the text says which field and why."""


def field(message: Any, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """The field `name` of a JSON object, checked to be of `kind` (bool never passes for a number)."""
    if not isinstance(message, Mapping):
        raise BadMessage("the body must be a JSON object")
    value = message.get(name, default)
    if value is ...:
        raise BadMessage(f"the field {name!r} is missing")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if value is default or (isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)):
        return value
    expected = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
    raise BadMessage(f"the field {name!r} must be {expected}, not {type(value).__name__}")


def limits_to_json(limits: Limits | None) -> dict[str, Any] | None:
    """All fields of the limits; None stays None (the server's own)."""
    return None if limits is None else dataclasses.asdict(limits)


def limits_from_json(message: Any) -> Limits | None:
    """Raises `BadMessage` for an unknown field, a wrong type or a value that `Limits` refuses."""
    if message is None:
        return None
    if not isinstance(message, Mapping):
        raise BadMessage("the field 'limits' must be a JSON object or null")
    known = {f.name for f in dataclasses.fields(Limits)}
    for name, value in message.items():
        if name not in known:
            raise BadMessage(f"the field 'limits' has no {name!r}; it has {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise BadMessage(f"limits.{name} must be a number")
    try:
        return Limits(**message)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadMessage(f"limits: {error}") from error


def limits_above(limits: Limits, ceiling: Limits) -> list[str]:
    """In words, every limit that is higher than the ceiling allows."""
    found = []
    for f in dataclasses.fields(Limits):
        wanted, most = getattr(limits, f.name), getattr(ceiling, f.name)
        if isinstance(wanted, int | float) and isinstance(most, int | float) and wanted > most:
            found.append(f"{f.name} {wanted:g} is above this server's {most:g}")
    return found


def limits_within(limits: Limits, ceiling: Limits) -> Limits:
    """The limits, no field of them higher than the ceiling's."""
    names = [f.name for f in dataclasses.fields(Limits)]
    return Limits(**{name: min(getattr(limits, name), getattr(ceiling, name)) for name in names})


def result_to_json(result: Result) -> dict[str, Any]:
    """Every field of a result."""
    files = [[file.name, file.size] for file in result.files]
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(Result)}
    return fields | {"status": result.status.value, "files": files}


def result_from_json(message: Any) -> Result:
    """Raises `BadMessage` when a field is missing or of a wrong type."""
    text_or_none, number = (str, type(None)), (int, float)
    kinds: dict[str, Any] = {
        "stdout": str, "stderr": str, "value": text_or_none, "error": text_or_none, "truncated": bool,
        "wall_s": number, "cpu_s": number, "signal": (int, type(None)), "exit_code": (int, type(None)),
        "session_alive": bool, "note": text_or_none,
    }  # fmt: skip
    values = {name: field(message, name, kind) for name, kind in kinds.items()}
    try:
        status = Status(field(message, "status", str))
    except ValueError as error:
        raise BadMessage(f"unknown status {message['status']!r}") from error
    files = field(message, "files", list)
    if not all(
        isinstance(f, list) and len(f) == 2 and isinstance(f[0], str) and isinstance(f[1], int) for f in files
    ):
        raise BadMessage("the field 'files' must be a list of [name, size]")
    return Result(status=status, files=tuple(File(name, size) for name, size in files), **values)
