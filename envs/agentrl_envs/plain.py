"""Plain data out of what others wrote: text that can be encoded, JSON whose numbers are numbers, and a
written form of anything at all.

Nothing here raises but `read_json`, and that a `ValueError` only. All of it takes linear time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

__all__ = ["clean_text", "plain", "read_json", "write_json"]

DEEPEST = 100
"""Levels of nesting that are written; what lies deeper is written as text."""
LONGEST_NUMBER = 4000
"""Digits of a whole number that are written; Python itself refuses to write many more."""
MOST_VALUES = 1_000_000
"""Values that are written of one; what is shared may stand in it many times over."""
_LONE = re.compile(r"\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f]..")
"""Half of a pair, as JSON writes it."""
_LONE_HALF = re.compile(r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")
_BITS = int(LONGEST_NUMBER * math.log2(10))


def clean_text(text: str) -> str:
    """The text with U+FFFD for what no encoding can write (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # The codecs' own handlers take half a second for a megabyte of them.
        whole = _LONE_HALF.sub("\ufffd", text)
        return whole.encode("utf-16", "surrogatepass").decode("utf-16")
    return text


def read_json(text: str) -> Any:
    """JSON as models write it: line breaks inside strings are allowed, and lone surrogates become U+FFFD.

    Raises:
        ValueError: it is not JSON, holds NaN, Infinity or a number that is none (1e999), or is nested too
            deeply.
    """
    try:
        value = _decoder().decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _cleaned(value) if "\\u" in text or clean_text(text) != text else value


@cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(strict=False, parse_constant=_refused, parse_float=_finite)


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


def plain(value: Any) -> Any:
    """Anything as JSON can write it: what has no form of its own there is written as text.

    Scalars of NumPy become numbers, sets and other sequences lists, bytes text; numbers that are not finite,
    whole numbers of thousands of digits, what holds itself, what is nested deeper than 100 levels, and what
    comes after the first million values become text.
    """
    return _Writer().plain(value)


class _Writer:
    """One value on its way to plain data."""

    def __init__(self) -> None:
        self._left = MOST_VALUES
        self._above: list[int] = []  # identities of what the present value lies in

    def plain(self, value: Any) -> Any:
        self._left -= 1
        try:
            return self._plain(value)
        except (Exception, SystemExit):  # the object's own code; only it is lost, not what it lies in
            return f"<{type(value).__name__}>"

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return clean_text(str(value))
        if isinstance(value, int):
            bits = value.bit_length()
            digits = int(bits * math.log10(2))
            return int(value) if bits < _BITS else f"a whole number of about {digits} digits"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(value)
        # A tree whose children know their parent would be written 2**100 times over, and a list that is
        # shared at each of its levels as often as it has paths.
        if id(value) in self._above or len(self._above) >= DEEPEST:
            return "... (nested too deeply)"
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value).decode(errors="replace")
        self._above.append(id(value))
        try:
            return self._composed(value)
        finally:
            self._above.pop()

    def _composed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return dict(self._some((self._key(key), item) for key, item in value.items()))
        if isinstance(value, list | tuple | set | frozenset):
            return [item for _, item in self._some((None, item) for item in value)]
        convert = getattr(value, "tolist", None)  # arrays and scalars of NumPy and torch
        if callable(convert):
            return self.plain(convert())
        return clean_text(str(value))

    def _some(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Keys with plain items, as long as there is room for more."""
        for key, item in items:
            if self._left <= 0:
                yield "...", "... (more was left out)"
                return
            yield key, self.plain(item)

    def _key(self, key: Any) -> str:
        key = self.plain(key)
        return key if isinstance(key, str) else json.dumps(key)


def _ends(value: Any) -> bool:
    """Whether a value has few enough parts: `json` writes what is shared once for every path to it."""
    pending, seen = [value], 0
    while pending and seen <= MOST_VALUES:
        item = pending.pop()
        if isinstance(item, dict):
            seen += len(item)
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            seen += len(item)
            pending.extend(item)
    return not pending


def write_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON of anything, as `plain` has it. Lone surrogates are replaced, NaN and Infinity are text."""
    separators = (",", ":") if indent is None else None
    if not _ends(value):
        value = plain(value)
    try:
        text = json.dumps(
            value, separators=separators, indent=indent, allow_nan=False, ensure_ascii=ensure_ascii
        )
        if not ("\\ud" in text and _LONE.search(text)) and clean_text(text) == text:
            return text
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    return json.dumps(plain(value), separators=separators, indent=indent, ensure_ascii=ensure_ascii)
