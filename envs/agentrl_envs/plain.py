"""Plain data out of what others wrote: text that can be encoded, JSON whose numbers are numbers, and a
written form of anything at all.

Nothing here raises but `read_json`, and that a `ValueError` only. All of it takes linear time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["clean_text", "plain", "read_json", "write_json"]

DEEPEST = 100
"""Levels of nesting that are written; what lies deeper is written as text."""
LONGEST_NUMBER = 4000
"""Digits of a whole number that are written; Python itself refuses to write many more."""
_BITS = int(LONGEST_NUMBER * math.log2(10))


def clean_text(text: str) -> str:
    """The text with U+FFFD for what no encoding can write (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_json(text: str) -> Any:
    """JSON as models write it: line breaks inside strings are allowed, and lone surrogates become U+FFFD.

    Raises:
        ValueError: it is not JSON, holds NaN, Infinity or a number that is none (1e999), or is nested too
            deeply.
    """
    try:
        value = json.loads(text, strict=False, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _cleaned(value) if "\\u" in text or clean_text(text) != text else value


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refused(digits)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _cleaned(item) for key, item in value.items()}
    return value


def plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Anything as JSON can write it: what has no form of its own there is written as text.

    Scalars of NumPy become numbers, sets and other sequences lists, bytes text; numbers that are not finite,
    whole numbers of thousands of digits, what holds itself, and what is nested deeper than 100 levels become
    text. `above` are the identities of what the value lies in.
    """
    try:
        return _plain(value, above)
    except Exception:  # the object's own code; only it is lost, not what it lies in
        return f"<{type(value).__name__}>"


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean_text(str(value))
    if isinstance(value, int):
        bits = value.bit_length()
        return int(value) if bits < _BITS else f"a whole number of about {int(bits * math.log10(2))} digits"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    # Without the first rule a tree whose children know their parent would be written 2**100 times over.
    if id(value) in above or len(above) >= DEEPEST:
        return "... (nested too deeply)"
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode(errors="replace")
    return _composed(value, (*above, id(value)))


def _composed(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): plain(item, above) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, above) for item in value]
    convert = getattr(value, "tolist", None)  # arrays and scalars of NumPy and torch
    if callable(convert):
        return plain(convert(), above)
    return clean_text(str(value))


def _key(key: Any) -> str:
    key = plain(key)
    return key if isinstance(key, str) else json.dumps(key)


def write_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON of anything, as `plain` has it. Lone surrogates are replaced, NaN and Infinity are text."""
    separators = (",", ":") if indent is None else None
    try:
        text = json.dumps(
            value, separators=separators, indent=indent, allow_nan=False, ensure_ascii=ensure_ascii
        )
        if "\\ud" not in text and clean_text(text) == text:
            return text
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    return json.dumps(plain(value), separators=separators, indent=indent, ensure_ascii=ensure_ascii)
