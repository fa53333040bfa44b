r"""Whether two answers are equal, by their outer form; single values are handed to `leaf`.

The same rules serve the exact path (a leaf that knows numbers only) and the symbolic one (a leaf that asks
sympy). The verdicts are those a mathematician would give; `docs/grading.md` lists them. Knows nothing of
processes or limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from .cleaning import cleaned, compact, join_thousands
from .exact import number_of, same_number
from .structure import Based, Equation, Form, Items, Matrix, Ordered, Relation, Value, Word, form_of, is_name
from .units import conversion, split_unit

__all__ = ["CannotParse", "Leaf", "Undecided", "equal", "exact_leaf"]

Leaf = Callable[[str, str], bool]
"""(answer, gold) as text, both one value without unit -> equal? Raises Undecided or CannotParse.

The pair of equations `l1 = r1` and `l2 = r2` is asked as such, with the `=` in the text.
"""


class Undecided(Exception):
    """This leaf cannot tell."""


class CannotParse(Exception):
    """The answer is no mathematics that can be read."""


def exact_leaf(answer: str, gold: str) -> bool:
    """Equality of numbers in simple forms."""
    given, expected = number_of(answer), number_of(gold)
    if given is None or expected is None:
        raise Undecided
    return same_number(answer, given, expected)


def equal(answer: str, gold: str, leaf: Leaf) -> bool:
    """Whether the stated `answer` equals `gold`.

    Where a comma may be a thousands separator, either reading counts.
    """
    answer, gold = _same_kind(cleaned(answer), cleaned(gold))
    if answer == gold:
        return True
    if not answer:
        raise CannotParse
    answers, golds = {join_thousands(answer): None, answer: None}, {join_thousands(gold): None, gold: None}
    undecided: Undecided | None = None
    for one in answers:
        for other in golds:
            try:
                if _same(form_of(one), form_of(other), leaf):
                    return True
            except Undecided as error:
                undecided = error
    if undecided is not None:
        raise undecided
    return False


_CHOICE = re.compile(r"\\text\s*\{\s*\(([A-Z])\)\s*\}\s*(?![,;]|\\text|and|or)(\S.*)\Z", re.DOTALL)
_LETTER = re.compile(r"(?:\\text\s*\{\s*)?\(?[A-Z]\)?\s*\}?\Z")


def _same_kind(answer: str, gold: str) -> tuple[str, str]:
    r"""`\textbf{(C)}\ 12` states a letter and a value: what the other side has too is compared."""
    given, expected = _CHOICE.match(answer), _CHOICE.match(gold)
    if given and expected:
        return (given[2], expected[2]) if given[1] == expected[1] else (given[1], expected[1])
    if given:
        return given[1] if _LETTER.match(gold) else given[2], gold
    if expected:
        return answer, expected[1] if _LETTER.match(answer) else expected[2]
    return answer, gold


def _same(a: Form, g: Form, leaf: Leaf) -> bool:
    if a == g:
        return True
    if isinstance(a, Equation) or isinstance(g, Equation):
        return _same_equation(a, g, leaf)
    if isinstance(a, Items) or isinstance(g, Items):
        return _same_items(
            a.items if isinstance(a, Items) else (a,), g.items if isinstance(g, Items) else (g,), leaf
        )
    if isinstance(a, Ordered) and isinstance(g, Ordered):
        if (a.opening, a.closing) != (g.opening, g.closing) or len(a.items) != len(g.items):
            return False
        return _all_same(a.items, g.items, leaf)
    if isinstance(a, Matrix) or isinstance(g, Matrix):
        return _same_matrix(a, g, leaf)
    if isinstance(a, Word) or isinstance(g, Word):
        return _same_word(a, g)
    if isinstance(g, Based):
        return False  # `a == g` was asked above: the base belongs to the answer
    if isinstance(a, Based):
        return isinstance(g, Value) and _value_in_base(a) == number_of(split_unit(g.text)[0])
    if isinstance(a, Value) and isinstance(g, Value):
        return _same_value(a.text, g.text, leaf)
    if isinstance(a, Relation) and isinstance(g, Relation):
        return leaf(a.text, g.text)
    return False


def _all_same(answers: tuple[Form, ...], golds: tuple[Form, ...], leaf: Leaf) -> bool:
    """All pairs equal. A pair that is surely different decides, even if another pair is undecided."""
    undecided: Undecided | None = None
    for a, g in zip(answers, golds, strict=True):
        try:
            if not _same(a, g, leaf):
                return False
        except Undecided as error:
            undecided = error
    if undecided is not None:
        raise undecided
    return True


def _same_items(answers: tuple[Form, ...], golds: tuple[Form, ...], leaf: Leaf) -> bool:
    """Each item of either side has an equal on the other; order and repetition say nothing."""
    numbers = _numbers(answers), _numbers(golds)
    if numbers[0] is not None and numbers[1] is not None and (len(answers) > 1 or len(golds) > 1):
        return numbers[0] == numbers[1]
    answers, golds = tuple(dict.fromkeys(answers)), tuple(dict.fromkeys(golds))
    if not answers or not golds:
        return not answers and not golds
    pairs: dict[tuple[int, int], bool] = {}

    def matches(i: int, j: int) -> bool:
        if (i, j) not in pairs:
            pairs[i, j] = _same(answers[i], golds[j], leaf)
        return pairs[i, j]

    every_gold = all(any(matches(i, j) for i in range(len(answers))) for j in range(len(golds)))
    return every_gold and all(any(matches(i, j) for j in range(len(golds))) for i in range(len(answers)))


def _numbers(items: tuple[Form, ...]) -> set[Fraction] | None:
    numbers = [number_of(item.text) if isinstance(item, Value) else None for item in items]
    return None if any(number is None for number in numbers) else {n for n in numbers if n is not None}


def _same_equation(a: Form, g: Form, leaf: Leaf) -> bool:
    if isinstance(a, Equation) and isinstance(g, Equation):
        if len(a.sides) == len(g.sides) == 2:
            if is_name(a.sides[0]) and is_name(g.sides[0]) and compact(a.sides[0]) == compact(g.sides[0]):
                return _same(form_of(a.sides[1]), form_of(g.sides[1]), leaf)
            return (_all_numeric(a) and _all_numeric(g) and _chain(a, g, leaf)) or leaf(
                "=".join(a.sides), "=".join(g.sides)
            )
        return False
    if isinstance(g, Equation):
        # gold `y = 2x + 3`, answer `2x + 3`; gold `0.56 = 56%`, answer `56%`
        return (is_name(g.sides[0]) or _all_numeric(g)) and _same(a, form_of(g.sides[-1]), leaf)
    assert isinstance(a, Equation)
    return _chain(a, g, leaf)


def _all_numeric(equation: Equation) -> bool:
    return all(number_of(split_unit(side)[0]) is not None for side in equation.sides)


def _chain(a: Equation, g: Form, leaf: Leaf) -> bool:
    r"""`x = g`, `m + n = g` and `10/2 = 5` for gold 5, not `g + 1 = g`.

    Every side must equal the gold answer, except a first one that names what is asked.
    """
    sides = list(a.sides)
    if _names_the_question(sides[0], g):
        sides = sides[1:]
    if isinstance(g, Equation):
        g = form_of(g.sides[-1])
    return all(_same(form_of(side), g, leaf) for side in reversed(sides))


_SYMBOL = re.compile(  # x, AB, a_1, f(3)
    r"(?<![\\A-Za-z])([A-Za-z]+)(?:_\s*(?:\{[^{}]*\}|\w)|(?<=[fghpqFGHPQ])'*\s*\([^()]*\))*"
)
_OPERATIONS = re.compile(r"[-+*/]|\\(?:[cdt]?frac|[lc]dot|times|div|ln|lg|log|exp)(?![A-Za-z])")


def _names_the_question(side: str, g: Form) -> bool:
    """Whether `side` is what was asked for (`m + n`, `f(3)`), not an equation to be solved (`2x`, `x^2`)."""
    if is_name(side):
        return True
    if "\\begin" in side:
        return False
    if "\\text" in side and not re.search(r"\d", side):
        return True
    side = re.sub(r"\\text\s*\{[^{}]*\}", " ", side)
    symbols = {match.group(): match[1] for match in _SYMBOL.finditer(side)}
    between = _SYMBOL.sub(" ", side)
    if re.search(r"\d|\^|\\sqrt", between) or (len(symbols) == 1 and _OPERATIONS.search(between)):
        return False
    letters = set("".join(symbols.values())) - {"e", "i"}
    return bool(letters) and not letters & _letters(g)


def _letters(form: Form) -> set[str]:
    """Letters that occur in the values of an answer."""
    if isinstance(form, Items | Ordered):
        return set().union(*(_letters(item) for item in form.items))
    if isinstance(form, Matrix):
        return set().union(*(_letters(cell) for row in form.rows for cell in row))
    text = form.text if isinstance(form, Value | Word | Relation) else repr(form)
    return set(re.findall(r"[A-Za-z]", text)) | set(re.findall(r"[A-Za-z]", text.upper()))


def _same_matrix(a: Form, g: Form, leaf: Leaf) -> bool:
    rows, wanted = _rows(a), _rows(g)
    if rows is None or wanted is None or [len(row) for row in rows] != [len(row) for row in wanted]:
        return False
    return _all_same(tuple(c for row in rows for c in row), tuple(c for row in wanted for c in row), leaf)


def _rows(form: Form) -> tuple[tuple[Form, ...], ...] | None:
    """Rows of a matrix; a point in brackets is a column."""
    if isinstance(form, Ordered) and (form.opening, form.closing) == ("(", ")"):
        return tuple((item,) for item in form.items)
    if isinstance(form, Matrix):
        return tuple((cell,) for cell in form.rows[0]) if len(form.rows) == 1 else form.rows
    return None


def _same_word(a: Form, g: Form) -> bool:
    texts = []
    for form in (a, g):
        if not isinstance(form, Word | Value):
            return False
        texts.append(form.text.lower().replace(" ", "").strip("."))
    return texts[0] == texts[1]


def _value_in_base(number: Based) -> Fraction | None:
    try:
        return Fraction(int(number.digits, number.base))
    except ValueError:
        return None


def _same_value(answer: str, gold: str, leaf: Leaf) -> bool:
    if compact(answer) == compact(gold):
        return True
    given, unit = split_unit(answer)
    expected, wanted = split_unit(gold, unit)
    if unit is None and wanted is not None:
        given, unit = split_unit(answer, wanted)
    if unit == wanted or not (unit and wanted):
        return _unit_left_out(given, unit, expected, wanted, leaf)
    factor = conversion(unit, wanted)
    if factor is None:
        return False
    return _scaled(given, factor, expected, leaf)


def _unit_left_out(given: str, unit: str | None, expected: str, wanted: str | None, leaf: Leaf) -> bool:
    """Values where at most one side states a unit: as they stand, or as the number the unit makes of them."""
    undecided: Undecided | None = None
    try:
        if compact(given) == compact(expected) or leaf(given, expected):
            return True
    except Undecided as error:
        undecided = error
    for one, other, mark in ((unit, wanted, unit), (wanted, unit, wanted)):
        if one == "%" and other is None:
            if mark is unit and _scaled(given, Fraction(1, 100), expected, leaf):
                return True
            if mark is wanted and wanted == "%" and _scaled(given, Fraction(100), expected, leaf):
                return True
    if unit == "degree" and wanted is None and "\\pi" in expected:
        return leaf(f"({given}) \\cdot \\frac{{\\pi}}{{180}}", expected)
    if wanted == "degree" and unit is None and "\\pi" in given:
        return leaf(given, f"({expected}) \\cdot \\frac{{\\pi}}{{180}}")
    if undecided is not None:
        raise undecided
    return False


def _scaled(given: str, factor: Fraction, expected: str, leaf: Leaf) -> bool:
    """Whether `given` times `factor` equals `expected`."""
    number, wanted = number_of(given), number_of(expected)
    if number is not None and wanted is not None:
        return same_number(given, number * factor, wanted)
    return leaf(f"({given}) \\cdot \\frac{{{factor.numerator}}}{{{factor.denominator}}}", expected)
