r"""Equality of single values by sympy, read by math-verify's parser.

Runs only in processes that can be killed: it can hang, and the process that asked holds the limit. Numbers
are compared to 40 digits, expressions at points; where points cannot tell, math-verify decides.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from .comparison import CannotParse, Undecided, exact_leaf
from .exact import decimals_of, enough_digits, number_of
from .symbols import readable
from .units import TRIGONOMETRY

__all__ = ["symbolic_leaf", "warm_up"]

_DIGITS = 50
_EQUAL = 40  # leading digits in which two numbers must agree
# Not round, so that an accident of one point does not make two expressions equal; negative ones tell x from
# |x|.
_POINTS = ("0.7310585786", "1.9378129145", "-0.6180339887", "3.3598856662", "-2.2360679775")
_WHOLE = ("1", "2", "3", "4", "5", "8", "13", "37", "100", "12", "7")  # for steps, which hide between points
_INDICES = frozenset("ijklmnpqMNK")  # letters that stand for whole numbers inside a step function

_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
# The parser reads 2(3) and (2)(3) as mixed numbers.
_PRODUCT = re.compile(r"((?<![_^\d}])(?<!\\variable\{)\d+|\))\s*(?=\()")
_CONSTANT = re.compile(r"[CcKk](Z5fZ\w+)?\Z")  # of integration, with its subscript
_EQUALS = re.compile(r"=(?![^{]*\})")  # not that of a sum's index


def warm_up() -> None:
    """Import everything and fill the parser's tables, so that children forked afterwards start quick."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    for answer, gold in (
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt 2}"),
        ("x^2-1", "(x-1)(x+1)"),
        ("\\sin 3", "2\\pi^3"),
        ("e^{x_1}+\\sqrt{y}", "1"),
    ):
        symbolic_leaf(answer, gold)
    _parsed.cache_clear()


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """sympy expression of a LaTeX value, with i as the imaginary unit and real odd roots; or None."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from sympy import I, real_root

    if TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    try:
        text = _PRODUCT.sub(r"\1 \\cdot ", readable(text))
        value: Any = latex2sympy(
            text,
            is_real=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        imaginary = [symbol for symbol in getattr(value, "free_symbols", ()) if str(symbol) == "i"]
        return real_root(value.subs(dict.fromkeys(imaginary, I)) if imaginary else value)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever a parser of LaTeX dislikes means that this is none
        return None


def symbolic_leaf(answer: str, gold: str, tolerance: float = 0.0) -> bool:
    """Equality of two values. Raises CannotParse when the answer is no mathematics."""
    from sympy import Expr

    try:
        return exact_leaf(answer, gold, tolerance)
    except Undecided:
        pass
    if _EQUALS.search(answer) and _EQUALS.search(gold):
        return _proportional(answer, gold)
    values = given, expected = _parsed(answer), _parsed(gold)
    if given is None:
        raise CannotParse
    if expected is None:
        return False
    if all(isinstance(value, Expr) and not value.free_symbols and not value.is_Matrix for value in values):
        return _same_constant(answer, given, gold, expected, tolerance)
    return _same_expression(given, expected)


def _same_constant(answer: str, given: Any, gold: str, expected: Any, tolerance: float = 0.0) -> bool:
    from sympy import N, Rational

    difference = (given - expected).doit()
    if difference.is_Rational and (difference == 0 or not tolerance):
        return bool(difference == 0)
    values = [N(value, _DIGITS + 10) for value in (given, expected)]
    if not all(v.is_number and v.is_finite is not False for v in values):
        return bool(given.doit() == expected.doit() and given.is_infinite and not given.is_complex)
    difference = abs(values[0] - values[1])
    number, digits = number_of(answer), decimals_of(answer)
    if number is not None and digits is not None and enough_digits(answer) and number_of(gold) is None:
        return bool(difference < Rational(1, 10**digits))
    size = max(abs(values[0]), abs(values[1]))
    if size <= Rational(1, 10**_DIGITS):
        return bool(size == 0)
    return bool(difference <= size * max(Rational(1, 10**_EQUAL), Rational(tolerance)))


def _same_expression(given: Any, expected: Any) -> bool:
    from math_verify import verify
    from sympy import Expr, MatrixBase, MatrixExpr, nan, zoo

    if any(isinstance(value, MatrixBase | MatrixExpr) for value in (given, expected)):
        return bool(given.doit().equals(expected.doit()))
    algebraic = isinstance(given, Expr) and isinstance(expected, Expr)
    if algebraic and (given.has(nan, zoo) or expected.has(nan, zoo)):
        return False
    if given == expected or (algebraic and given.doit() == expected.doit()):
        return True
    agree = _agree_at_points(given, expected) if algebraic else None
    if agree is None:
        return bool(verify(expected, given, timeout_seconds=None))
    return agree or _same_antiderivative(given, expected)


def _values(given: Any, expected: Any) -> Any:
    """Pairs of values where both are defined; real ones only, unless an imaginary unit is written."""
    from sympy import Derivative, I, Integral, Limit, Product, Rational, Sum, ceiling, floor

    if any(value.has(Integral, Sum, Product, Limit, Derivative) for value in (given, expected)):
        given, expected = given.doit(), expected.doit()
    symbols = sorted(given.free_symbols | expected.free_symbols, key=str)
    points = _POINTS
    if given.has(floor, ceiling) or expected.has(floor, ceiling):
        points = _WHOLE if all(str(s) in _INDICES for s in symbols) else _WHOLE + _POINTS
    complex_too = given.has(I) or expected.has(I)
    for i in range(count := len(points)):  # no two symbols have one value
        point = {s: Rational(points[(i + j) % count]) + j // count for j, s in enumerate(symbols)}
        pair = given.evalf(_DIGITS, subs=point), expected.evalf(_DIGITS, subs=point)
        if not all(value.is_number and not value.free_symbols for value in pair):
            return
        if all(value.is_finite and (complex_too or value.is_real) for value in pair):
            yield pair


def _close(left: Any, right: Any) -> bool:
    from sympy import Rational

    return bool(abs(left - right) <= Rational(1, 10**30) * max(abs(left), abs(right), Rational(1, 10**10)))


def _agree_at_points(given: Any, expected: Any) -> bool | None:
    """Whether two expressions have the same values at points; None when there are too few to tell."""
    compared = 0
    for left, right in _values(given, expected):
        if not _close(left, right):
            return False
        compared += 1
    return True if compared >= 2 else None


def _same_antiderivative(given: Any, expected: Any) -> bool:
    """Whether two expressions with a constant of integration, whatever its name, differ by a number."""
    values, names = [], ""
    for value in (given, expected):
        constants = [s for s in value.free_symbols if _CONSTANT.match(str(s)) and value.diff(s) == 1]
        if len(constants) != 1 or len(value.free_symbols) == 1:
            return False
        values.append(value - constants[0])
        names += str(constants[0])
    if names.islower():  # c and k are letters of other expressions, too
        return False
    differences = [left - right for left, right in _values(*values)]
    same = len(differences) >= 3 and all(_close(one, differences[0]) for one in differences)
    return same or values[0] == values[1]


def _proportional(answer: str, gold: str) -> bool:
    """Whether one equation is a constant multiple of the other."""
    from sympy import Expr

    sides = [[_parsed(side) for side in _EQUALS.split(text)] for text in (answer, gold)]
    if None in sides[0]:
        raise CannotParse
    if any(len(side) != 2 or not all(isinstance(one, Expr) for one in side) for side in sides):
        return False
    given, expected = sides[0][0] - sides[0][1], sides[1][0] - sides[1][1]
    if not expected.free_symbols or given.free_symbols != expected.free_symbols:
        return False
    ratios = [left / right for left, right in _values(given, expected) if right != 0]
    return len(ratios) >= 2 and ratios[0] != 0 and all(_close(ratio, ratios[0]) for ratio in ratios)
