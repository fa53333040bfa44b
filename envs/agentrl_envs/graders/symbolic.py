"""Equality of single values by math-verify and sympy. Runs only in processes that can be killed: it can hang.

math-verify's own time limits (alarms, on wall time) are off; the process that asked holds the limit. Numbers
are compared to 50 digits, expressions by math-verify and, where it says no, at points.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from .comparison import CannotParse, Undecided, exact_leaf
from .exact import decimals_of, number_of
from .units import TRIGONOMETRY

__all__ = ["symbolic_leaf", "warm_up"]

_DIGITS = 50
_EQUAL = 40  # leading digits in which two numbers must agree
# Not round, so that an accident of one point does not make two expressions equal; negative ones tell x from
# |x|.
_POINTS = ("0.7310585786", "1.9378129145", "-0.6180339887", "3.3598856662", "-2.2360679775")

_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
# The parser reads 2(3) and (2)(3) as mixed numbers.
_PRODUCT = re.compile(r"((?<![_^\d])\d+|\))\s*(?=\()")


def warm_up() -> None:
    """Import everything and fill the parser's tables, so that children forked afterwards start quick."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    for answer, gold in (
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt 2}"),
        ("x^2-1", "(x-1)(x+1)"),
        ("\\sin 3", "2\\pi^3"),
    ):
        symbolic_leaf(answer, gold)
    _parsed.cache_clear()


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """sympy expression of a LaTeX value, or None."""
    from math_verify import LatexExtractionConfig, parse

    if TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = _PRODUCT.sub(r"\1 \\cdot ", text)
    normal = LatexExtractionConfig().normalization_config
    # Its units would take the s off 3x + 2s; ours were taken off before.
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=replace(normal, units=False))
    try:
        found = parse(
            "\\boxed{" + text + "}",
            [config],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        )
    except MemoryError:
        raise
    except Exception:  # whatever a parser of LaTeX dislikes means that this is none
        return None
    return _complex(found[0]) if found and not isinstance(found[0], str) else None


def _complex(value: Any) -> Any:
    """`value` with i as the imaginary unit, when nothing else in it is unknown."""
    from sympy import Expr, I

    unknown = value.free_symbols if isinstance(value, Expr) else ()
    return value.subs(dict.fromkeys(unknown, I)) if {str(symbol) for symbol in unknown} == {"i"} else value


def symbolic_leaf(answer: str, gold: str) -> bool:
    """Equality of two values. Raises CannotParse when the answer is no mathematics."""
    try:
        return exact_leaf(answer, gold)
    except Undecided:
        pass
    if "=" in answer and "=" in gold:
        return _same_equation(answer, gold)
    given, expected = _parsed(answer), _parsed(gold)
    if given is None:
        raise CannotParse
    if expected is None:
        return False
    if _is_number(given) and _is_number(expected):
        return _same_constant(answer, given, gold, expected)
    return _verified(expected, given) or _agree_at_points(given, expected)


def _verified(expected: Any, given: Any) -> bool:
    from math_verify import verify

    return bool(verify(expected, given, timeout_seconds=None))


def _is_number(value: Any) -> bool:
    from sympy import Expr

    return isinstance(value, Expr) and not value.free_symbols


def _same_constant(answer: str, given: Any, gold: str, expected: Any) -> bool:
    from sympy import Float, N, Rational

    exact_difference = (given - expected).doit()
    if exact_difference.is_Rational and not (given.has(Float) or expected.has(Float)):
        return bool(exact_difference == 0)
    exact = [number_of(answer), number_of(gold)]  # sympy's floats have 15 digits; what was written has all
    values = []
    for value, number in zip((given, expected), exact, strict=True):
        values.append(
            N(value if number is None else Rational(number.numerator, number.denominator), _DIGITS + 10)
        )
    if not all(v.is_number and v.is_finite is not False for v in values):
        return False
    difference = abs(values[0] - values[1])
    digits = decimals_of(answer)
    if exact[0] is not None and exact[1] is None and digits is not None and digits >= 6:
        return bool(difference < Rational(1, 10**digits))
    size = max(abs(values[0]), abs(values[1]))
    return (
        bool(difference <= size * Rational(1, 10**_EQUAL))
        if size > Rational(1, 10**_DIGITS)
        else bool(size == 0)
    )


def _agree_at_points(given: Any, expected: Any) -> bool:
    """Whether two expressions have the same real values at points where both are real.

    For what math-verify misses.
    """
    from sympy import Expr, Rational

    if not (isinstance(given, Expr) and isinstance(expected, Expr)):
        return False
    symbols = sorted(expected.free_symbols, key=str)
    if not symbols or given.free_symbols != expected.free_symbols:
        return False
    compared = 0
    point: dict[Any, Any]
    for i in range(len(_POINTS)):
        point = {s: Rational(_POINTS[(i + j) % len(_POINTS)]) for j, s in enumerate(symbols)}
        left, right = given.evalf(_DIGITS, subs=point), expected.evalf(_DIGITS, subs=point)
        if not (left.is_number and right.is_number):
            return False
        if not (left.is_real and right.is_real):
            continue
        compared += 1
        if abs(left - right) > Rational(1, 10**30) * max(abs(left), abs(right), Rational(1, 10**10)):
            return False
    return compared >= 2


def _same_equation(answer: str, gold: str) -> bool:
    """Whether two equations have the same solutions because one is a constant multiple of the other."""
    from sympy import simplify

    sides = [_parsed(side) for text in (answer, gold) for side in text.split("=", 1)]
    if sides[0] is None or sides[1] is None:
        raise CannotParse
    if sides[2] is None or sides[3] is None:
        return False
    given, expected = sides[0] - sides[1], sides[2] - sides[3]
    if simplify(expected) == 0 or simplify(given) == 0:
        return False  # 0 = 0 is no equation
    ratio = simplify(given / expected)
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)
