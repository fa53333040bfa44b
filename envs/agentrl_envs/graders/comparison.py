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
from .exact import decimals_of, number_of, same_number
from .structure import (
    Based,
    Equation,
    Form,
    Items,
    Matrix,
    Ordered,
    Ratio,
    Relation,
    Value,
    Word,
    form_of,
    is_name,
)
from .symbols import symbol_name
from .units import conversion, split_unit

__all__ = ["CannotParse", "Leaf", "Undecided", "equal", "exact_leaf"]

Leaf = Callable[..., bool]
"""(answer, gold, tolerance=) as text, both one value without unit -> equal? Raises Undecided or CannotParse.

The pair of equations `l1 = r1` and `l2 = r2` is asked as such, with the `=` in the text.
"""


class Undecided(Exception):
    """This leaf cannot tell."""


class CannotParse(Exception):
    """The answer is no mathematics that can be read."""


def exact_leaf(answer: str, gold: str, tolerance: float = 0.0) -> bool:
    """Equality of numbers in simple forms, to a relative tolerance."""
    given, expected = number_of(answer), number_of(gold)
    if given is None or expected is None:
        raise Undecided
    return same_number(answer, given, expected, tolerance)


def equal(answer: str, gold: str, leaf: Leaf) -> bool:
    """Whether the stated `answer` equals `gold`.

    Where a comma may be a thousands separator, either reading counts.
    """
    answer, gold = _without_qualifiers(*_same_kind(cleaned(answer), cleaned(gold)))
    if answer == gold:
        return True
    if not answer:
        raise CannotParse
    if "\\approx" in answer or "\\approx" in gold:
        return _same_approximation(answer, gold, leaf)
    undecided: Undecided | None = None
    for one in _readings(answer):
        for other in _readings(gold):
            try:
                if _same(form_of(one), form_of(other), leaf):
                    return True
            except Undecided as error:
                undecided = error
    if undecided is not None:
        raise undecided
    return False


def _readings(text: str) -> list[str]:
    """`text` with its thousands joined, and as a list, where a comma may mean either: `1,000` is no list."""
    joined = join_thousands(text)
    return [joined] if joined == text or re.search(r",0\d\d", text) else [joined, text]


_CHOICE = re.compile(
    r"(?:\\text\s*\{\s*(?:\(([A-Z])\)|([A-Z])[:.)])\s*\}|\(([A-Z])\)\s*(?=[^,;\s]))\s*(?![,;]|\\text|and|or)(\S.*)\Z",
    re.DOTALL,
)
_LETTER = re.compile(r"(?:\\text\s*\{\s*)?\(?[A-Z]\)?\s*\}?\Z")
_OPTION = re.compile(
    r"(?:\\text\s*\{\s*)?(?:option|choice|answer)\s*:?\s*\}?\s*\(?([A-Z])\)?[.:]?\s*\}?\Z", re.IGNORECASE
)


def _same_kind(answer: str, gold: str) -> tuple[str, str]:
    r"""`\textbf{(C)}\ 12` states a letter and a value: what the other side has too is compared."""
    if _LETTER.match(gold) and (option := _OPTION.match(answer)):
        return option[1].upper(), gold
    given, expected = _choice(answer), _choice(gold)
    if given and expected:
        return (given[1], expected[1]) if given[0] == expected[0] else (given[0], expected[0])
    if given:
        return given[0] if _LETTER.match(gold) else given[1], gold
    if expected:
        return answer, expected[0] if _LETTER.match(answer) else expected[1]
    return answer, gold


def _choice(text: str) -> tuple[str, str] | None:
    match = _CHOICE.match(text)
    return (match[1] or match[2] or match[3], match[4]) if match else None


# What a side may add that the other leaves out: where it holds, modulo what, roughly how much.
_QUALIFIER = re.compile(
    r"\s*[,;]?\s*(?:\\forall(?![A-Za-z]).*|\(\s*[^()=]*\\in(?![A-Za-z])[^()]*\)|\\text\s*\{\s*[,;(]?\s*(?:for|where|when|with|as long as|such that|"
    r"provided|i\.e\.|that is)(?![A-Za-z]).*)\Z",
    re.DOTALL,
)
_MODULUS = re.compile(
    r"\s*\(?\s*(?:\\p?b?mod(?![A-Za-z])|\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*\}|\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*(?=\d))\s*\{?\s*(\d+)\s*[)}]*\s*\Z"
)
_ROUGHLY = re.compile(r"(?<=\S)\s*\\(?:approx|simeq)(?![A-Za-z])\s*(?=\S)")


def _without_qualifiers(answer: str, gold: str) -> tuple[str, str]:
    """Both sides without what only one of them adds to its value."""
    for mark in (_QUALIFIER, _MODULUS):
        if "\\" not in answer + gold:
            break
        given, expected = mark.search(answer), mark.search(gold)
        if given and not expected and given.start() > 0:
            answer = answer[: given.start()]
        elif expected and not given and expected.start() > 0:
            gold = gold[: expected.start()]
        elif given and expected and mark is _MODULUS and given[1] == expected[1]:
            answer, gold = answer[: given.start()], gold[: expected.start()]
    return answer, gold


def _same_approximation(answer: str, gold: str, leaf: Leaf) -> bool:
    r"""`\sqrt2 \approx 1.41` is the square root, if the digits are its; both sides count where both state them."""
    given, expected = _ROUGHLY.split(answer), _ROUGHLY.split(gold)
    if len(given) == len(expected):
        return all(equal(a, g, leaf) for a, g in zip(given, expected, strict=True))
    if len(given) == 1:
        return any(equal(answer, value, leaf) for value in expected if not is_name(value)) or equal(
            answer, f"{expected[0]}={expected[-1]}", leaf
        )
    if is_name(given[0]) or not equal(given[0], gold, leaf):
        return False
    number, digits = number_of(given[-1]), decimals_of(given[-1])
    if not number:
        return equal(given[-1], gold, leaf)
    return leaf(
        given[-1], given[0].split("=")[-1], tolerance=float(Fraction(1, 10 ** (digits or 0)) / abs(number))
    )


def _same(a: Form, g: Form, leaf: Leaf) -> bool:
    if a == g:
        return True
    values, wanted = _named_values(a), _named_values(g)
    if values is not None and wanted is None:
        a = values if isinstance(values, Items) or isinstance(g, Ordered) else Ordered("", "", values.items)
    elif wanted is not None and values is None:
        g = wanted if isinstance(wanted, Items) or isinstance(a, Ordered) else Ordered("", "", wanted.items)
    if isinstance(a, Ordered) and isinstance(g, Items) and not a.opening:
        return len(a.items) == len(g.items) and _all_same(a.items, g.items, leaf)
    if isinstance(g, Ordered) and isinstance(a, Items) and not g.opening:
        return len(a.items) == len(g.items) and _all_same(a.items, g.items, leaf)
    if isinstance(a, Equation) or isinstance(g, Equation):
        return _same_equation(a, g, leaf)
    if isinstance(a, Ratio) or isinstance(g, Ratio):
        return _same_ratio(a, g, leaf)
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


def _named_values(form: Form) -> Items | Ordered | None:
    r"""Values of `x = 1, x = 2` as a list, of `x = 3, y = 4` as a point in the order of the names; else None."""
    if not isinstance(form, Items) or not any(isinstance(item, Equation) for item in form.items):
        return None
    named = [
        item
        for item in form.items
        if isinstance(item, Equation) and len(item.sides) == 2 and is_name(item.sides[0])
    ]
    heads = [_head(item.sides[0]) for item in named]
    values = tuple(form_of(item.sides[-1]) if isinstance(item, Equation) else item for item in form.items)
    if len({head.partition("_")[0] for head in heads}) == 1:
        others = [item for item in form.items if item not in named]
        return None if any(isinstance(item, Equation | Relation) for item in others) else Items(values)
    if len(named) < len(form.items) or len(set(heads)) < len(heads):
        return None
    if "".join(sorted(heads)) in "abcdefghijklmnopqrstuvwxyz":  # x and y, p and q
        values = tuple(
            value for _, value in sorted(zip(heads, values, strict=True), key=lambda pair: pair[0])
        )
    return Ordered("(", ")", values)


def _head(side: str) -> str:
    r"""The name on the left of an equation, without what it is a function of: `y` of `y(x)`."""
    name, _, subscript = re.sub(r"(?<=[A-Za-z])\s*\([^()]*\)\s*\Z", "", side).partition("_")
    return symbol_name(name) + ("_" + symbol_name(subscript) if subscript else "")


def _same_ratio(a: Form, g: Form, leaf: Leaf) -> bool:
    """Ratios are equal when their numbers are in proportion; what may be times of day, when they are the same."""
    if not all(isinstance(form, Ratio) for form in (a, g)):
        one, other = (a, g) if isinstance(a, Ratio) else (g, a)
        whole = isinstance(one, Ratio) and len(one.parts) == 2 and isinstance(other, Value)
        return whole and not _clock(one) and leaf(other.text, f"\\frac{{{one.parts[0]}}}{{{one.parts[1]}}}")
    x, y = (
        [number_of(part) or Fraction(0) for part in form.parts] for form in (a, g) if isinstance(form, Ratio)
    )
    if x == y or _clock(a) or _clock(g) or len(x) != len(y) or not all(x + y):
        return x == y
    return len({one / other for one, other in zip(x, y, strict=True)}) == 1


def _clock(form: Form) -> bool:
    return isinstance(form, Ratio) and re.fullmatch(r"[0-5]\d", form.parts[1]) is not None


def _same_items(answers: tuple[Form, ...], golds: tuple[Form, ...], leaf: Leaf) -> bool:
    """Each item of either side has its own equal on the other; order says nothing, repetition does.

    One value may be stated twice.
    """
    if len(golds) == 1 or (isinstance(golds[0] if golds else None, Ordered) and len(set(golds)) == len(golds)):
        answers = tuple(dict.fromkeys(answers))
    numbers = _numbers(answers), _numbers(golds)
    if numbers[0] is not None and numbers[1] is not None and (len(answers) > 1 or len(golds) > 1):
        return numbers[0] == numbers[1] or (len(golds) == 1 and set(numbers[0]) == set(numbers[1]))
    if not answers or not golds or (len(answers) != len(golds) and len(golds) > 1):
        return not answers and not golds

    def matches(answer: Form, gold: Form) -> bool:
        try:
            return _same(answer, gold, leaf)
        except CannotParse:
            if len(answers) == 1 or len(golds) == 1:
                raise
            return False

    if len(golds) == 1:
        return all(matches(answer, golds[0]) for answer in answers)
    left = list(golds)
    for answer in answers:
        found = next((gold for gold in left if answer == gold), None) or next(
            (gold for gold in left if matches(answer, gold)), None
        )
        if found is None:
            return False
        left.remove(found)
    return True


def _numbers(items: tuple[Form, ...]) -> list[Fraction] | None:
    numbers = [number_of(item.text) if isinstance(item, Value) else None for item in items]
    return None if any(number is None for number in numbers) else sorted(n for n in numbers if n is not None)


def _plain(side: str) -> str:
    return re.sub(r"\\text|[{}]", "", compact(side))


def _same_equation(a: Form, g: Form, leaf: Leaf) -> bool:
    if isinstance(a, Equation) and isinstance(g, Equation):
        return _same_equations(a, g, leaf)
    if isinstance(g, Equation):
        # gold `y = 2x + 3`, answer `2x + 3`; gold `0.56 = 56%`, answer `56%`; gold `\log_6 36 = 2`, answer 2
        last = form_of(g.sides[-1])
        return _states_a_value(g, last) and _same(a, last, leaf)
    assert isinstance(a, Equation)
    return _chain(a, g, leaf)


def _states_a_value(g: Equation, value: Form) -> bool:
    """Whether a gold equation states its last side: the first names it, or is a number that equals it."""
    side = g.sides[0]
    if is_name(side) or not _unknowns("".join(g.sides)):
        return True
    return bool(_unknowns(side)) and _names_the_question(side, value) and not re.search(r"[-+]|[xyz]", side)


def _unknowns(side: str) -> set[str]:
    return set(
        re.findall(r"[A-Za-z]", re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[^{}]*\})?|\\[A-Za-z]+", "", side))
    ) - {"e", "i"}


def _same_equations(a: Equation, g: Equation, leaf: Leaf) -> bool:
    first, wanted = a.sides[0], g.sides[0]
    if len(a.sides) == len(g.sides):
        pairs = list(zip(a.sides, g.sides, strict=True))
        same_heads = _plain(first) == _plain(wanted)
        if all(_plain(x) == _plain(y) for x, y in pairs):
            return True
        if (same_heads or not (is_name(first) or is_name(wanted))) and _all_sides(pairs, leaf):
            return True
    if _head(first) == _head(wanted) and (is_name(first) or is_name(wanted)):
        return _chain(a, form_of(g.sides[-1]), leaf)
    if not _unknowns(wanted) and _unknowns(first) and (is_name(first) or _names_the_question(first, g)):
        return _chain(Equation(("x", *a.sides[1:])), form_of(g.sides[-1]), leaf)
    return len(a.sides) == len(g.sides) == 2 and leaf("=".join(a.sides), "=".join(g.sides))


def _all_sides(pairs: list[tuple[str, str]], leaf: Leaf) -> bool:
    try:
        return all(_plain(x) == _plain(y) or _same(form_of(x), form_of(y), leaf) for x, y in pairs)
    except CannotParse:
        return False


def _chain(a: Equation, g: Form, leaf: Leaf) -> bool:
    r"""`x = g`, `m + n = g` and `10/2 = 5` for gold 5, not `g + 1 = g`.

    Every side must equal the gold answer, except a first one that names what is asked.
    """
    sides = list(a.sides)
    if _names_the_question(sides[0], g):
        sides = sides[1:]
    while len(sides) > 1 and is_name(sides[0]):  # x = y = 12
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
    if side[:1] + side[-1:] == "()" and all(is_name(part.strip()) for part in side[1:-1].split(",")):
        return True
    side = re.sub(r"(?<=[A-Z])\s*\^\s*\{?\s*-1\s*\}?", "", side)  # of an inverse matrix
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
    text = (
        form.text
        if isinstance(form, Value | Word | Relation)
        else form.digits
        if isinstance(form, Based)
        else ""
    )
    text = re.sub(r"\\[a-z]+", "", text)  # commands are no letters
    return set(re.findall(r"[A-Za-z]", text)) | set(re.findall(r"[A-Za-z]", text.upper()))


def _same_matrix(a: Form, g: Form, leaf: Leaf) -> bool:
    if isinstance(a, Value) or isinstance(g, Value):  # 2A, A + B
        texts = [form.text if isinstance(form, Value | Matrix) else "" for form in (a, g)]
        return all("\\begin" in text for text in texts) and leaf(*texts)
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
        texts.append(re.sub(r"^(?:an?|the) ", "", form.text.lower()).replace(" ", "").strip("."))
    return texts[0] == texts[1]


def _value_in_base(number: Based) -> Fraction | None:
    try:
        return Fraction(int(number.digits, number.base))
    except ValueError:
        return None


_RANGE = re.compile(
    r"\d+(?:\s*-{1,3}\s*\d+)+\Z|\d+\s*/\s*\d+\s*/\s*\d+\Z"
)  # also a score or a date: nothing to compute


def _same_value(answer: str, gold: str, leaf: Leaf) -> bool:
    if compact(answer) == compact(gold):
        return True
    if _RANGE.match(gold):
        return False
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
