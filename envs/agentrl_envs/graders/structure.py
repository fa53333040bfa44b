r"""The outer form of an answer: a list, a tuple or interval, an equation, a matrix, a word, or one value.

Only the outside is read here, in time linear in the text; what a value means is for `exact` and `symbolic`.
Reading the form ourselves is what keeps `(1,2)` apart from `1,2`, and `g+1=g` from `g`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from .cleaning import PLAIN_NUMBER, compact
from .exact import number_of

__all__ = [
    "Based", "Equation", "Form", "Items", "Ordered", "Relation", "Value", "Word", "form_of",
    "is_name",
]  # fmt: skip

_TOKEN = re.compile(
    r"\\text\s*\{[^{}]*\}|\\begin\s*\{[^{}]*\}|\\end\s*\{[^{}]*\}|\\[A-Za-z]+|\\.|<=|>=|!="
    r"|\s+(?:or|and)\s+|(?<=[)\]])(?:or|and)(?=[(\[])|.",
    re.DOTALL,
)
_OPENING = {"{", "(", "[", "\\{", "\\langle", "\\begin"}
_CLOSING = {"}", ")", "]", "\\}", "\\rangle", "\\end"}
_ORDER = {
    "<": "<", ">": ">", "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "<=": "<=",
    "\\ge": ">=", "\\geq": ">=",
    "\\geqslant": ">=", ">=": ">=",
}  # fmt: skip
_NOT_EQUAL = {"\\ne", "\\neq", "!="}
_OTHER_RELATIONS = {*_NOT_EQUAL, r"\approx", r"\equiv", r"\sim", r"\to", r"\mapsto", r"\simeq", r"\implies"}
_BASED = re.compile(r"(?=[^_]*\d)\(?([+-]?[0-9A-Za-z.]+)\)?\s*_\s*\{?\s*(\d{1,2})[\s}]*\Z", re.ASCII)
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\s*\{[^{}]*\})?(.*)\\end\s*\{\1\}\Z", re.DOTALL)
_SHORT_WORDS = {"yes", "no", "on", "off", "odd", "all", "one", "two", "six", "ten"}
_WORD = re.compile(r"[A-Za-z][A-Za-z'\-. :]*\Z")


@dataclass(frozen=True, slots=True)
class Value:
    """One value: a number or an expression, with its unit if it has one."""

    text: str


@dataclass(frozen=True, slots=True)
class Word:
    """An answer in words, in lower case."""

    text: str


@dataclass(frozen=True, slots=True)
class Based:
    """A number written in a base: `1024_5`."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers whose order says nothing: `1, 2`, `{1, 2}`, a union of intervals."""

    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, a point, an interval, a matrix: the brackets and the order count.

    A vector is a point, any other matrix a point of its rows. A ratio's bracket is its colon.
    """

    opening: str
    closing: str
    items: tuple[Form, ...]
    text: str = field(default="", compare=False)  # of a matrix, as it is written


@dataclass(frozen=True, slots=True)
class Equation:
    """Sides joined by `=`, as text."""

    sides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """Any other statement (an inequality between expressions, `a \\approx b`), compared as it is written."""

    text: str


Form = Value | Word | Based | Items | Ordered | Equation | Relation


@lru_cache(maxsize=4096)
def form_of(text: str) -> Form:
    """The outer form of cleaned text. Raises RecursionError for absurdly deep nesting."""
    if PLAIN_NUMBER.match(text):
        return Value(text)
    text = _without_braces(text)
    parts = [p for p in _split(text, _is_list_mark) if p]
    if excluded := _EXCLUSION.match(text):
        points = [part.removeprefix(excluded.group()) for part in parts]
        if not any(map(is_name, points)):
            return _everything_but(points)
    if len(parts) > 1:
        return Items(_flat(parts))
    text = _without_braces(parts[0]) if parts else ""
    if text.startswith("\\bigcup"):
        return Relation(compact(text))
    if match := _CASES.match(text):
        rows = _split(match[1].strip(), lambda token: token == "\\\\")
        return Items(_flat([row for row in rows if row.strip("& ")]))
    unions = _split(text, lambda token: token == "\\cup") if "\\cup" in text else []
    if len(unions) > 1:
        return Items(_flat(unions))
    if text.startswith("+"):
        text = text[1:].strip()
    return _set_of(text) or _plus_minus(text) or _relation(text) or _bracketed(text) or _single(text)


_CASES = re.compile(r"\\begin\s*\{cases\}(.*)\\end\s*\{cases\}\Z", re.DOTALL)
_BUILDER = re.compile(
    r"\\?\{\s*\\?[A-Za-z]+(?:_\w)?\s*(?:\\in\s*(?:\\mathbb\s*)?\{?\s*([A-Z])\s*\}?)?\s*"
    r"(?:\\(?:mid|vert)(?![A-Za-z])|:|\|)"
)
_EXCLUSION = re.compile(r"[A-Za-z]\s*(?:\\neq?(?![A-Za-z])|!=)\s*")
_REALS = re.compile(
    r"(?:\\mathbb\s*\{?\s*R\s*\}?|(?:the set of )?(?:all |any |every )?(?:the )?reals?(?: numbers?| values?)?"
    r"(?: of)?(?: [a-z])?)(?:\s*(?:\\setminus|except(?: for)?)(?![A-Za-z])\s*(.+))?\Z",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?no (?:real |integer |such )?(?:solutions?|values?|roots?)(?: exists?)?\Z"
    r"|(?:the )?(?:empty|null) set\Z",
    re.IGNORECASE,
)


def _everything_but(points: list[str]) -> Form:
    """The reals without some points, as the union of intervals that is left."""
    forms = sorted(_flat(points), key=lambda form: number_of(getattr(form, "text", "")) or 0)
    edges = [Value("-\\infty"), *forms, Value("\\infty")]
    intervals = tuple(Ordered("(", ")", pair) for pair in pairwise(edges))
    return Items(intervals) if points else intervals[0]


def _set_of(text: str) -> Form | None:
    r"""The set that a builder, an exclusion or a name of the reals or of the empty set stands for."""
    inside = _split(text, lambda token: token == "\\in") if "\\in" in text else []
    if len(inside) == 2 and inside[1]:
        return form_of(inside[1])
    if (match := _BUILDER.match(text)) and text.endswith("}"):
        if (match[1] or "R") != "R":
            return Relation(compact(text))
        return form_of(text[match.end() : -1].removesuffix("\\").strip())
    if text.startswith("\\{") and text.endswith("\\}") and _closes_at_end(text):
        return Items(tuple(dict.fromkeys(_flat([text[2:-2].strip()]))))  # a set has each of its items once
    words = " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).split())
    if match := _REALS.match(words):
        points = (match[1] or "").strip().removeprefix("\\{").removesuffix("\\}")
        return _everything_but([point for point in _split(points, _is_list_mark) if point])
    return Items(()) if _NOTHING.match(words) else None


def _flat(parts: list[str]) -> tuple[Form, ...]:
    forms = [form_of(part) for part in parts]
    return tuple(f for form in forms for f in (form.items if isinstance(form, Items) else (form,)))


def _is_list_mark(token: str) -> bool:
    if token in (",", ";"):
        return True
    words = token.removeprefix("\\text").strip(" {}").strip(" ,;")
    return (token[:1] in (" ", "\\", "o", "a") and words in ("or", "and")) or token == "\\text{}"


def _tokens(text: str) -> Iterator[tuple[str, int, int, int]]:
    """(token, start, end, depth); an opening mark has the depth outside it."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        kind = token.partition("{")[0].strip() if token.startswith(("\\begin", "\\end")) else token
        if kind in _CLOSING:
            depth = max(0, depth - 1)
        yield token, match.start(), match.end(), depth
        if kind in _OPENING:
            depth += 1


def _split(text: str, is_mark: object) -> list[str]:
    parts, start = [], 0
    for token, begin, end, depth in _tokens(text):
        if depth == 0 and is_mark(token):  # type: ignore[operator]
            parts.append(text[start:begin].strip())
            start = end
    parts.append(text[start:].strip())
    return parts


def _without_braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and _closes_at_end(text):
        text = text[1:-1].strip()
    return text


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens `text` is closed by its last token."""
    return sum(depth == 0 and begin > 0 for _, begin, _, depth in _tokens(text)) == 1


def _relation(text: str) -> Form | None:
    marks = [
        ("\\ne" if t in _NOT_EQUAL else t, b, e)
        for t, b, e, d in _tokens(text)
        if d == 0 and (t == "=" or t in _ORDER or t in _OTHER_RELATIONS)
    ]
    if not marks:
        return None
    edges = [0, *(e for _, _, e in marks)]
    sides = [text[a:b].strip() for a, b in zip(edges, [*(b for _, b, _ in marks), len(text)], strict=True)]
    kinds = [t for t, _, _ in marks]
    if kinds == ["\\ne"] and all(sides):
        if is_name(sides[1]) and not is_name(sides[0]):
            return form_of(f"{sides[1]} \\ne {sides[0]}")
        return Relation("\\ne".join(sorted(map(compact, sides))))
    if all(kind in ("=", "\\equiv") for kind in kinds):
        return Equation(tuple(sides)) if all(sides) else Relation(compact(text))
    if any(kind not in _ORDER for kind in kinds) or not all(sides):
        return Relation(compact(text))
    return _interval(sides, [_ORDER[kind] for kind in kinds]) or Relation(compact(text))


_ABSOLUTE = re.compile(r"\|\s*([a-zA-Z])\s*([-+][^|a-zA-Z]*)?\|\Z")


def _interval(sides: list[str], kinds: list[str]) -> Ordered | None:
    """`2 <= x < 5` as [2, 5), `x > 3` as (3, oo); None when it is not a range of one name."""
    if kinds[0][0] == ">":
        sides, kinds = sides[::-1], [k.replace(">", "<") for k in reversed(kinds)]
    if any(kind[0] == ">" for kind in kinds):
        return None
    if len(sides) == 2 and (match := _ABSOLUTE.match(sides[0])):  # |x - a| < b
        center = f"-({match[2]})" if match[2] else ""
        return _interval([f"-({sides[1]}){center}", match[1], f"{sides[1]}{center}"], kinds * 2)
    if len(sides) == 2 and is_name(sides[0]) != is_name(sides[1]):
        low = [] if is_name(sides[1]) else ["-\\infty"]
        sides, kinds = [*low, *sides, "\\infty"][:3], [*("<" for _ in low), *kinds, "<"]
    if len(sides) != 3 or not is_name(sides[1]):
        return None
    opening, closing = "[" if kinds[0] == "<=" else "(", "]" if kinds[1] == "<=" else ")"
    return Ordered(opening, closing, (form_of(sides[0]), form_of(sides[2])))


_SIGNS = re.compile(r"\\[pm][pm](?![A-Za-z])")
_NAME = re.compile(
    r"(?:\\[A-Za-z]+\s*)?[A-Za-z]{0,3}(?:_\s*(?:\{[^{}]*\}|\w))?'*"
    r"(?:\s*\(\s*(?:\\[a-z]+\s*\{?\s*)?[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\}?\s*\))?\Z"
)


def is_name(text: str) -> bool:
    """A single symbol (`x`, `a_1`, `\\theta`, `\\angle ABC`) or a function of symbols (`f(x)`)."""
    if text in ("", "\\infty", "\\pi", "e", "i") or re.match(r"\\(?:sqrt|ln|lg|log|exp)(?![A-Za-z])", text):
        return False
    return _NAME.match(text) is not None


def _plus_minus(text: str) -> Form | None:
    """`a \\pm b`, wherever the sign stands, as the two values it stands for."""
    if not _SIGNS.search(text):
        return None
    values = []
    for plus, minus in (("+", "-"), ("-", "+")):
        value = re.sub(r"\\pm(?![A-Za-z])", plus, re.sub(r"\\mp(?![A-Za-z])", minus, text)).strip()
        values.append(re.sub(r"(^|[=({,])\s*\+", r"\1", value).strip())
    return Items(tuple(form_of(value) for value in values))


def _bracketed(text: str) -> Form | None:
    if text in ("\\emptyset", "\\varnothing", "\\{\\}", "\\{ \\}"):
        return Items(())
    if (match := _MATRIX.match(text)) and "\\begin" not in match[2]:
        rows = [row for row in _split(match[2].strip(), lambda token: token == "\\\\") if row]
        cells = [tuple(form_of(cell) for cell in _split(row, lambda token: token == "&")) for row in rows]
        if len(cells) == 1 or all(len(row) == 1 for row in cells):
            return Ordered("(", ")", sum(cells, ()), text)
        return Ordered("(", ")", tuple(Ordered("(", ")", row) for row in cells), text)
    tokens = list(_tokens(text)) if text.startswith(("(", "[", "\\langle")) else []
    if len(tokens) < 2 or not _closes_at_end(text):
        return None
    opening, closing = tokens[0][0], tokens[-1][0]
    inside = text[tokens[0][2] : tokens[-1][1]].strip()
    parts = _split(inside, lambda token: token in (",", ";"))
    if len(parts) == 1:
        return form_of(inside) if opening + closing == "()" or _MATRIX.match(inside) else None
    if opening + closing == "\\langle\\rangle":  # a vector is written as a point is
        opening, closing = "(", ")"
    return Ordered(opening, closing, tuple(form_of(part) for part in parts))


_COLONS = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+\Z")


def _based(text: str) -> Based | None:
    if not (match := _BASED.match(text)):
        return None
    try:
        int(match[1].replace(".", ""), int(match[2]))
    except ValueError:  # an index, or no digits of the base
        return None
    return Based(match[1].upper().lstrip("+"), int(match[2]))


def _ratio(parts: list[str]) -> Form:
    """Parts of a ratio in proportion, a quotient when there are two; a time of day as it is written."""
    numbers = [number_of(part.strip()) or Fraction(0) for part in parts]
    if not all(numbers) or re.fullmatch(r"[0-5]\d", parts[1].strip()):
        return Ordered(":", ":", tuple(Value(part.strip()) for part in parts))
    if len(parts) == 2:
        return Value("\\frac{{{}}}{{{}}}".format(*parts))
    return Ordered(":", ":", tuple(Value(str(number / numbers[0])) for number in numbers))


def _single(text: str) -> Form:
    if _COLONS.match(text):
        return _ratio(text.split(":"))
    if based := _based(text):
        return based
    wrapped = re.match(r"\\text\s*\{([^{}]*)\}\Z", text)
    inner = wrapped[1].strip().strip('"') if wrapped else text.strip('"')
    if wrapped and not _WORD.match(inner):
        return form_of(inner) if inner and inner != text else Value(inner)
    proper = len(inner) >= 4 or inner.istitle() or inner.isupper() or inner in _SHORT_WORDS
    if _WORD.match(inner) and len(inner) > 1 and (wrapped or proper):
        return Word(" ".join(inner.lower().rstrip(".").split()))
    return Value(inner)
