r"""Whether two answers are equal, by their outer form; single values are handed to `leaf`.

The same rules serve the exact path (a leaf that knows numbers only) and the symbolic one (a leaf that asks
sympy). The verdicts are those a mathematician would give; `docs/grading.md` lists them. Knows nothing of
processes or limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from operator import eq

from .cleaning import cleaned, compact, join_thousands
from .exact import decimals_of, number_of, same_number
from .structure import Based, Equation, Form, Items, Ordered, Relation, Value, Word, form_of, is_name
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
    answer, gold = cleaned(answer), cleaned(gold)
    if answer != gold:
        answer, gold = _without_qualifiers(*_same_kind(answer, gold))
    if answer == gold:
        return True
    if not answer:
        raise CannotParse
    if "\\approx" in answer or "\\approx" in gold:
        return _same_approximation(answer, gold, leaf)
    forms = ((form_of(one), form_of(other)) for one in _readings(answer) for other in _readings(gold))
    return _decided(any, (lambda a=a, g=g: _same(a, g, leaf) for a, g in forms))


def _decided(judge: Callable[[Iterable[bool]], bool], tests: Iterable[Callable[[], bool]]) -> bool:
    """`judge` (any or all) of the tests that a leaf can decide, if that is enough; else raises Undecided."""
    results: list[bool] = []
    undecided: Undecided | None = None
    for test in tests:
        try:
            results.append(test())
        except Undecided as error:
            undecided = error
            continue
        if results[-1] is (judge is any):
            return results[-1]
    if undecided is not None:
        raise undecided
    return judge(results)


def _readings(text: str) -> list[str]:
    """`text` with its thousands joined, and as a list, where a comma may mean either: `1,000` is no list."""
    joined = join_thousands(text)
    return [joined] if joined == text or re.search(r",0\d\d", text) else [joined, text]


_CHOICE = re.compile(
    r"(?:\\text\s*\{\s*(?:\(([A-Z])\)|([A-Z])[:.)])\s*\}|\(([A-Z])\)\s*(?=[^,;\s]))\s*(?![,;]|\\text|and|or)"
    r"(\S.*)\Z",
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
    given, expected = (
        (match[1] or match[2] or match[3], match[4]) if (match := _CHOICE.match(text)) else None
        for text in (answer, gold)
    )
    if given and expected:
        return (given[1], expected[1]) if given[0] == expected[0] else (given[0], expected[0])
    if given:
        answer = given[0] if _LETTER.match(gold) else given[1]
    if expected:
        gold = expected[0] if _LETTER.match(answer) else expected[1]
    return answer, gold


# What a side may add that the other leaves out: where it holds, modulo what.
_QUALIFIER = re.compile(
    r"\s*[,;]\s*[A-Za-z]\s*\\in\s*\\mathbb.*\Z"
    r"|\s*[,;]?\s*(?:\\forall(?![A-Za-z]).*|\(\s*[^()=]*\\in(?![A-Za-z])[^()]*\)|\\text\s*\{\s*[,;(]?\s*"
    r"(?:for|where|when|with|as long as|such that|provided|i\.e\.|that is)(?![A-Za-z]).*)\Z",
    re.DOTALL,
)
_MODULUS = re.compile(
    r"\s*\(?\s*(?:\\p?b?mod(?![A-Za-z])|\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*(?:\}|(?=\d)))"
    r"\s*\{?\s*(\d+)\s*[)}]*\s*\Z"
)
_ROUGHLY = re.compile(r"(?<=\S)\s*\\(?:approx|simeq)(?![A-Za-z])\s*(?=\S)")


def _without_qualifiers(answer: str, gold: str) -> tuple[str, str]:
    """Both sides without what only one of them adds to its value, or both add alike."""
    for mark in (_QUALIFIER, _MODULUS) if "\\" in answer or "\\" in gold else ():
        given, expected = mark.search(answer), mark.search(gold)
        if given and expected and (mark is _QUALIFIER or given[1] != expected[1]):
            continue
        answer = answer[: given.start()] or answer if given else answer
        gold = gold[: expected.start()] or gold if expected else gold
    return answer, gold


def _same_approximation(answer: str, gold: str, leaf: Leaf) -> bool:
    r"""`\sqrt2 \approx 1.41` is the root if the digits are its; both sides count where both state them."""
    given, expected = _ROUGHLY.split(answer), _ROUGHLY.split(gold)
    if len(given) == len(expected):
        return all(equal(a, g, leaf) for a, g in zip(given, expected, strict=True))
    if len(given) == 1:
        values = [value for value in expected if not is_name(value)] + [f"{expected[0]}={expected[-1]}"]
        return _decided(any, (lambda value=value: equal(answer, value, leaf) for value in values))
    if is_name(given[0]) or not equal(given[0], gold, leaf):
        return False
    number = number_of(given[-1]) or Fraction(1)
    unit = Fraction(1, 10 ** (decimals_of(given[-1]) or 0))
    return leaf(given[-1], given[0].split("=")[-1], tolerance=float(unit / abs(number)))


def _same(a: Form, g: Form, leaf: Leaf) -> bool:
    if a == g:
        return True
    values, wanted = _named_values(a), _named_values(g)
    if (values is None) != (wanted is None):
        a, g = values or a, wanted or g
        if isinstance(a, Ordered) != isinstance(g, Ordered) and isinstance(values or wanted, Ordered):
            a, g = (Ordered("(", ")", f.items) if isinstance(f, Items) else f for f in (a, g))
    if isinstance(a, Equation) or isinstance(g, Equation):
        return _same_equation(a, g, leaf)
    if isinstance(a, Items) or isinstance(g, Items):
        answers, golds = (form.items if isinstance(form, Items) else (form,) for form in (a, g))
        return _same_items(answers, golds, leaf)
    if isinstance(a, Ordered) and isinstance(g, Ordered):
        if (a.opening, a.closing) != (g.opening, g.closing) or len(a.items) != len(g.items):
            return False
        return _all_same(a.items, g.items, leaf)
    texts = [form.text if isinstance(form, Value | Ordered) else "" for form in (a, g)]
    if all("\\begin" in text for text in texts):  # 2A, A + B
        return leaf(*texts)
    if isinstance(a, Word) or isinstance(g, Word):
        return _same_word(a, g)
    if isinstance(g, Based):
        return False  # `a == g` was asked above: the base belongs to the answer
    if isinstance(a, Based):
        return isinstance(g, Value) and _value_in_base(a) == number_of(split_unit(g.text)[0])
    if isinstance(a, Value) and isinstance(g, Value):
        return _same_value(a.text, g.text, leaf)
    return isinstance(a, Relation) and isinstance(g, Relation) and leaf(a.text, g.text)


def _all_same(answers: Iterable[Form], golds: Iterable[Form], leaf: Leaf) -> bool:
    """All pairs equal. A pair that is surely different decides, even if another pair is undecided."""
    pairs = zip(answers, golds, strict=True)
    return _decided(all, (lambda a=a, g=g: _same(a, g, leaf) for a, g in pairs))


def _named_values(form: Form) -> Items | Ordered | None:
    r"""Values of `x = 1, x = 2` as a list, of `x = 3, y = 4` as a point in the order of the names."""
    items = form.items if isinstance(form, Items) else ()
    named = [i for i in items if isinstance(i, Equation) and len(i.sides) == 2 and is_name(i.sides[0])]
    if not named or any(isinstance(item, Equation | Relation) for item in items if item not in named):
        return None
    heads = [_head(item.sides[0]) for item in named]
    values = [form_of(item.sides[-1]) if isinstance(item, Equation) else item for item in items]
    if len({head.partition("_")[0] for head in heads}) == 1:
        return Items(tuple(values))
    if len(set(heads)) < len(items):
        return None
    if "".join(sorted(heads)) in "abcdefghijklmnopqrstuvwxyz":  # x and y, p and q
        values = [value for _, value in sorted(zip(heads, values, strict=True), key=lambda pair: pair[0])]
    return Ordered("(", ")", tuple(values))


def _head(side: str) -> str:
    r"""The name on the left of an equation, without what it is a function of: `y` of `y(x)`."""
    name, _, subscript = re.sub(r"(?<=[A-Za-z])\s*\([^()]*\)\s*\Z", "", side).partition("_")
    return symbol_name(name) + ("_" + symbol_name(subscript) if subscript else "")


def _same_items(answers: tuple[Form, ...], golds: tuple[Form, ...], leaf: Leaf) -> bool:
    """Each item of either side has its own equal on the other; order says nothing, repetition does.

    One value, and points, may be stated twice.
    """
    if not answers or not golds:
        return not answers and not golds
    if len(golds) == 1 or (isinstance(golds[0], Ordered) and len(set(golds)) == len(golds)):
        answers = tuple(dict.fromkeys(answers))
    numbers = [
        [number_of(i.text) if isinstance(i, Value) else None for i in side] for side in (answers, golds)
    ]
    if None not in numbers[0] + numbers[1] and len(answers) + len(golds) > 2:
        given, expected = (sorted(n for n in side if n is not None) for side in numbers)
        return given == expected or (len(golds) == 1 and set(given) == set(expected))
    if len(golds) == 1:
        return all(_same(answer, golds[0], leaf) for answer in answers)
    left = list(golds)
    for answer in answers if len(answers) == len(golds) else ():
        left.sort(key=partial(eq, answer))  # what is written alike comes last
        found = next((i for i in reversed(range(len(left))) if _all_sides([(answer, left[i])], leaf)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_equation(a: Form, g: Form, leaf: Leaf) -> bool:
    if isinstance(a, Equation) and isinstance(g, Equation):
        return _same_equations(a, g, leaf)
    if isinstance(g, Equation):
        # gold `y = 2x + 3`, answer `2x + 3`; gold `0.56 = 56%`, answer `56%`; gold `\log_6 36 = 2`, answer 2
        last = form_of(g.sides[-1])
        return _states_a_value(g, last) and _same(a, last, leaf)
    return isinstance(a, Equation) and _chain(a, g, leaf)


def _states_a_value(g: Equation, value: Form) -> bool:
    """Whether a gold equation states its last side: the first names it, or is a number that equals it."""
    side = g.sides[0]
    if is_name(side) or not _unknowns("".join(g.sides)) or re.match(r"\\(?:lim|int|sum)(?![A-Za-z])", side):
        return True
    solved = _unknowns(side) and not re.search(r"(?<!\{)[-+]|[xyz]", side)
    return bool(solved) and _names_the_question(side, value)


def _unknowns(side: str) -> set[str]:
    side = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[^{}]*\})?|\\[A-Za-z]+", "", side)
    return set(re.findall(r"[A-Za-z]", side)) - {"e", "i"}


def _same_equations(a: Equation, g: Equation, leaf: Leaf) -> bool:
    first, wanted, last = a.sides[0], g.sides[0], form_of(g.sides[-1])
    named = is_name(first) or is_name(wanted)
    for sides in (a.sides, a.sides[::-1]) if len(a.sides) == len(g.sides) else ():
        pairs = [(x, y) for x, y in zip(sides, g.sides, strict=True) if compact(x) != compact(y)]
        renamed = named and pairs[:1] == [(sides[0], wanted)]
        if not renamed and _all_sides([(form_of(x), form_of(y)) for x, y in pairs], leaf):
            return True
    if named and _head(first) == _head(wanted):
        return _chain(a, last, leaf)
    if not _unknowns(wanted) and _unknowns(first) and _names_the_question(first, g):
        return _chain(Equation(("x", *a.sides[1:])), last, leaf)
    return len(a.sides) == len(g.sides) == 2 and leaf("=".join(a.sides), "=".join(g.sides))


def _all_sides(pairs: list[tuple[Form, Form]], leaf: Leaf) -> bool:
    """All pairs equal; one that cannot be read is not."""
    try:
        return all(_same(x, y, leaf) for x, y in pairs)
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
    return all(_same(form_of(side), g, leaf) for side in reversed(sides))


_SYMBOL = re.compile(  # x, AB, a_1, f(3)
    r"(?<![\\A-Za-z])([A-Za-z]+)(?:_\s*(?:\{[^{}]*\}|\w)|(?<=[fghpqFGHPQ])'*\s*\([^()]*\))*"
)
_OPERATIONS = re.compile(r"[-+*/]|\\(?:[cdt]?frac|[lc]dot|times|div|ln|lg|log|exp)(?![A-Za-z])")


def _names_the_question(side: str, g: Form) -> bool:
    """Whether `side` is what was asked for (`m + n`, `f(3)`), not an equation to be solved (`2x`, `x^2`)."""
    if is_name(side) or "\\begin" in side:
        return is_name(side)
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
    letters = _unknowns(getattr(form, "text", ""))
    return letters | {letter.upper() for letter in letters}


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


# Also a score or a date: there is nothing to compute.
_RANGE = re.compile(r"\d+(?:\s*-{1,3}\s*\d+)+\Z|\d+\s*/\s*\d+\s*/\s*\d+\Z")


def _same_value(answer: str, gold: str, leaf: Leaf) -> bool:
    if compact(answer) == compact(gold):
        return True
    if _RANGE.match(gold):
        return False
    given, unit = split_unit(answer)
    expected, wanted = split_unit(gold, unit)
    if unit is None and wanted is not None:
        given, unit = split_unit(answer, wanted)
    if ":" in given + expected and (unit or wanted):  # 7:05 p.m. is no quotient
        return unit == wanted and _same(form_of(given), form_of(expected), leaf)
    if unit == wanted or not (unit and wanted):
        return _unit_left_out(given, unit, expected, wanted, leaf)
    factor = conversion(unit, wanted)
    return factor is not None and _scaled(given, factor, expected, leaf)


def _unit_left_out(given: str, unit: str | None, expected: str, wanted: str | None, leaf: Leaf) -> bool:
    """Values where at most one side states a unit: as they stand, or as the number the unit makes of them."""
    tests = [lambda: compact(given) == compact(expected) or leaf(given, expected)]
    if unit == "%" and wanted is None:
        tests.append(lambda: _scaled(given, Fraction(1, 100), expected, leaf))
    if wanted == "%" and unit is None:
        tests.append(lambda: _scaled(given, Fraction(100), expected, leaf))
    if (unit, wanted) == ("degree", None) and "\\pi" in expected:
        tests.append(lambda: leaf(f"({given}) \\cdot \\frac{{\\pi}}{{180}}", expected))
    if (unit, wanted) == (None, "degree") and "\\pi" in given:
        tests.append(lambda: leaf(given, f"({expected}) \\cdot \\frac{{\\pi}}{{180}}"))
    return _decided(any, tests)


def _scaled(given: str, factor: Fraction, expected: str, leaf: Leaf) -> bool:
    """Whether `given` times `factor` equals `expected`."""
    number, wanted = number_of(given), number_of(expected)
    if number is not None and wanted is not None:
        return same_number(given, number * factor, wanted)
    return leaf(f"({given}) \\cdot \\frac{{{factor.numerator}}}{{{factor.denominator}}}", expected)
