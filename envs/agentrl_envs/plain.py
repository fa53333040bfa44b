"""Plain data out of what others wrote: text that can be encoded, JSON whose numbers are numbers, and a
written form of anything at all.

Nothing here raises but `read_json` and `read_any_json`, and those a `ValueError` only. All of it takes linear
time.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["clean_text", "plain", "read_any_json", "read_json", "write_json"]

DEEPEST = 100
"""Levels of nesting that are written; what lies deeper is written as text."""
LONGEST_NUMBER = 4000
"""Digits of a whole number that are written; Python itself refuses to write many more."""
MOST_VALUES = 1_000_000
"""Values that are written of one; what is shared may stand in it many times over."""
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"(?<!\\)(?:\\\\)*+\\u[dD][89a-fA-F]")
_LONE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""Half of a pair, as JSON writes it."""
_GREAT_EXPONENT = re.compile(r"[eE]\+?\d{3}")
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_BITS = int(LONGEST_NUMBER * math.log2(10))


def clean_text(text: str) -> str:
    """The text with U+FFFD for what no encoding can write (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON joins the halves of a pair; the codecs' own handlers take half a second for a megabyte of them.
        return _HALF.sub("\ufffd", json.loads(json.dumps(text)))
    return text


def read_json(text: str) -> Any:
    """JSON as models write it: line breaks inside strings are allowed, and lone surrogates become U+FFFD.

    Raises:
        ValueError: it is not JSON, holds NaN, Infinity or a number that is none (1e999), or is nested too
            deeply.
    """
    return _read(text, _STRICT)


def read_any_json(text: str) -> Any:
    """As `read_json`, with NaN and Infinity for what JSON has no numbers for, as programs write it.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    return _read(text, _LENIENT)


def _read(text: str, decoder: json.JSONDecoder) -> Any:
    source = clean_text(text)
    if ("\\ud" in source or "\\uD" in source) and _ESCAPED_HALF.search(source):
        # Backslashes that are meant as such are written in another way first: all others begin an escape.
        source = _LONE.sub(r"\\ufffd", source.replace("\\\\", "\\u005c"))
    if decoder is _STRICT and _maybe_great(source):
        decoder = _CAREFUL  # calls a function for each number
    # Else a value of many parts sets off collections, each of which walks all that the process holds.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return decoder.decode(source)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        if collecting:
            gc.enable()


def _maybe_great(source: str) -> bool:
    """Whether a number may be too great for a float: three digits of an exponent, or 300 in a row."""
    return b"0" * 300 in source.encode().translate(_DIGITS) or _GREAT_EXPONENT.search(source) is not None


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if -math.inf < value < math.inf else _refused(digits)


# Made once: `json.loads` makes one a call.
_LENIENT = json.JSONDecoder(strict=False)
_STRICT = json.JSONDecoder(strict=False, parse_constant=_refused)
_CAREFUL = json.JSONDecoder(strict=False, parse_constant=_refused, parse_float=_finite)


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
        if not ensure_ascii:
            text.encode()
        elif "\\ud" in text:  # half of a pair, perhaps
            json.dumps(value, ensure_ascii=False).encode()
        return text
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    return json.dumps(plain(value), separators=separators, indent=indent, ensure_ascii=ensure_ascii)
