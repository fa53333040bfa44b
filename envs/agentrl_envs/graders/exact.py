r"""Numbers in simple forms, as Fractions, in microseconds and without sympy.

A simple form is an integer, a decimal, a repeating one (`0.\overline{3}`), `3 \cdot 10^5`, a fraction (`3/4`,
`\frac34`, `\frac{3}{4}`) or a mixed number (`1\frac{1}{2}`), with thousands separators or one pair of
brackets. Nothing is rounded. Knows nothing of units.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

__all__ = ["LONGEST_NUMBER", "decimals_of", "enough_digits", "is_integer", "number_of", "same_number"]

LONGEST_NUMBER = 4000  # characters: Python refuses to read integers of more than 4300 digits
_MOST_TENS = 2000  # greatest exponent of ten that is written out
_INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_SCIENTIFIC = re.compile(
    rf"([+-]?{_DECIMAL})(?:[eE]|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^)\s*\{{?\s*([+-]?\d{{1,6}})\s*\}}?\Z",
    re.ASCII,
)
_SIGNED = re.compile(rf"[+-]?\s*{_DECIMAL}\Z", re.ASCII)
_SLASH = re.compile(rf"([+-]?\s*{_DECIMAL})\s*/\s*([+-]?\s*{_DECIMAL})\Z", re.ASCII)
_PART = rf"(?:\{{\s*([+-]?\s*{_DECIMAL})\s*\}}|\s*(\d))"
_FRAC = re.compile(rf"([+-]?)\s*(\d*)\s*\\frac\s*{_PART}\s*{_PART}\Z", re.ASCII)
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)\Z", re.ASCII)
_REPEATING = re.compile(r"([+-]?)\s*(\d*)\.(\d*)\s*\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))\Z", re.ASCII)
_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?\Z", re.ASCII)
_COMMAS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?\Z", re.ASCII)


def is_integer(text: str) -> bool:
    """Whether `text` is plain digits with at most a sign, and short enough to be read."""
    return len(text) <= LONGEST_NUMBER and _INTEGER.match(text) is not None


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(" ", ""))


@lru_cache(maxsize=8192)
def number_of(text: str) -> Fraction | None:
    """The number that cleaned text stands for, or None when it is not a simple form."""
    if len(text) > LONGEST_NUMBER:
        return None
    if _INTEGER.match(text):
        return Fraction(int(text))
    text = _unwrapped(text)
    if text[:1] in ("-", "+") and (inside := _unwrapped(text[1:])) != text[1:].strip():
        number = number_of(inside)
        return -number if number is not None and text[0] == "-" else number
    if not text or text[-1] not in "0123456789.}":
        return None
    try:
        return _simple_form(text)
    except (ValueError, ZeroDivisionError):
        return None


def _unwrapped(text: str) -> str:
    text = text.strip()
    # A comma in round brackets separates coordinates: (4,112) is a point, not 4112.
    while text[:1] + text[-1:] in ("()", "{}") and text.count(text[0]) == 1 and "," not in text:
        text = text[1:-1].strip()
    return text


def _simple_form(text: str) -> Fraction | None:
    if _SIGNED.match(text):
        return _fraction(text.rstrip("."))
    if _COMMAS.match(text) or _SPACED.match(text):
        return _fraction(text.replace(",", "").rstrip("."))
    if match := _SLASH.match(text):
        return _fraction(match[1].rstrip(".")) / _fraction(match[2].rstrip("."))
    if match := _FRAC.match(text):
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        part = _fraction((top or top_digit).rstrip(".")) / _fraction((bottom or bottom_digit).rstrip("."))
        if whole and part < 0:
            return None  # a product, 2 * (-1/2), not a mixed number
        return (-1 if sign == "-" else 1) * (int(whole or 0) + part)
    if match := _MIXED.match(text):
        sign, whole, top, bottom = match.groups()
        return (-1 if sign == "-" else 1) * (int(whole) + Fraction(int(top), int(bottom)))
    if match := _REPEATING.match(text):
        sign, whole, start, digits, digit = match.groups()
        repeated = Fraction(int(digits or digit), 10 ** len(digits or digit) - 1)
        return Fraction(sign + "1") * (int(whole + start or 0) + repeated) / 10 ** len(start)
    if match := _SCIENTIFIC.match(text):
        power = int(match[2])
        return _fraction(match[1].rstrip(".")) * Fraction(10) ** power if abs(power) <= _MOST_TENS else None
    return None


def decimals_of(text: str) -> int | None:
    """Digits after the point of a plain decimal; None for other forms."""
    return len(text.partition(".")[2]) if "." in text and _SIGNED.match(text.strip()) else None


def enough_digits(text: str) -> bool:
    """Whether a decimal has six digits after the point, and six that are no leading zeros."""
    digits = decimals_of(text)
    return digits is not None and digits >= 6 and len(re.sub(r"\D", "", text).lstrip("0")) >= 6


def same_number(answer: str, given: Fraction, expected: Fraction, tolerance: float = 0.0) -> bool:
    """Whether `given`, written as `answer`, equals `expected`.

    Exactly, or within `tolerance` of its size, except that a decimal with six or more digits after the point
    stands for a number that needs more digits than it has when it differs by less than one unit of its own
    last digit.
    """
    if given == expected or (tolerance and abs(given - expected) <= abs(expected) * Fraction(tolerance)):
        return True
    digits = decimals_of(answer)
    if digits is None or not enough_digits(answer) or (expected * 10**digits).denominator == 1:
        return False
    return abs(given - expected) < Fraction(1, 10**digits)
