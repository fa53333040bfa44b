r"""Units behind a value: taken off, brought to one spelling, compared, converted where both sides state one.

`5\text{ cm}`, `5 cm`, `90^\circ`, `50%`, `864 \text{ inches}^2`. A unit that a data set left out is no fault;
two different units are, and so are words that are no unit we know (`apples`, `p.m.`). Knows nothing of values
beyond where they end.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["conversion", "split_unit"]

F = Fraction
_MEASURES: dict[str, tuple[str, Fraction]] = {
    "mm": ("length", F(1, 1000)), "cm": ("length", F(1, 100)), "m": ("length", F(1)),
    "km": ("length", F(1000)), "inch": ("length", F(254, 10000)), "foot": ("length", F(3048, 10000)),
    "yard": ("length", F(9144, 10000)), "mile": ("length", F(1609344, 1000)), "second": ("time", F(1)),
    "minute": ("time", F(60)), "hour": ("time", F(3600)), "day": ("time", F(86400)),
    "week": ("time", F(604800)), "mg": ("mass", F(1, 1000)), "gram": ("mass", F(1)),
    "kg": ("mass", F(1000)), "dollar": ("money", F(1)), "cent": ("money", F(1, 100)),
    "degree": ("angle", F(1)), "radian": ("radian", F(1)), "liter": ("volume", F(1)),
    "ml": ("volume", F(1, 1000)), "ounce": ("weight", F(1)), "pound": ("weight", F(16)),
    "year": ("years", F(12)), "month": ("years", F(1)), "%": ("percent", F(1)),
    "celsius": ("celsius", F(1)), "fahrenheit": ("fahrenheit", F(1)),
}  # fmt: skip
_SPELLINGS = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "meter": "m", "metre": "m",
    "kilometer": "km", "inches": "inch", "in": "inch", "feet": "foot", "ft": "foot", "yd": "yard",
    "mi": "mile", "sec": "second", "s": "second", "min": "minute", "hr": "hour", "h": "hour",
    "g": "gram", "gm": "gram", "kilogram": "kg", "milligram": "mg", "usd": "dollar",
    "buck": "dollar", "¢": "cent", "deg": "degree", "rad": "radian", "litre": "liter", "l": "liter",
    "milliliter": "ml", "oz": "ounce", "lb": "pound", "percent": "%", "pct": "%", "percentage": "%",
    "mph": "mile/hour", "miles an hour": "mile/hour", "kmh": "km/hour", "kph": "km/hour",
    "degrees celsius": "celsius", "degrees c": "celsius", "degrees fahrenheit": "fahrenheit",
    "degrees f": "fahrenheit",
}  # fmt: skip
_TEMPERATURES = {None: "degree", "C": "celsius", "F": "fahrenheit"}
_NO_UNITS = {  # parts of the value, and words of a hedge
    "or", "and", "not",
    "alpha", "beta", "gamma", "delta", "theta", "lambda", "sigma", "omega", "squared", "cubed", "factorial",
    "half", "dozen", "hundred", "thousand", "million", "billion", "trillion",
}  # fmt: skip
_DEGREES = re.compile(
    r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\text\s*\{\s*([CF])\s*\}|([CF]))?\s*\Z|\s*\\degree\s*\Z"
)
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")  # whose argument the degrees are
_POWER = r"\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?\s*"
_PIECE = rf"(?:\\text\s*\{{[^{{}}^\d]*{_POWER}\}}|\\Omega(?![A-Za-z])|\\mu(?=\s*\\text))"
_TEXT = re.compile(rf"\s*({_PIECE}(?:\s*(?:\\cdot|/)?\s*{_PIECE}|\s*\^\s*\{{?\s*-?\d\s*\}}?)*)\Z")
_WORDS = re.compile(rf"(?:(?<=[\d.}})])|(?<=\\pi ))\s*([A-Za-z](?:[A-Za-z. ]|/(?=[A-Za-z]))*?){_POWER}\Z")
_INVERSE = re.compile(r" ([a-z]+) ?\^ ?-(\d)")
_PLURAL = re.compile(r"(?:(?<=[sxz])|(?<=[cs]h))es\Z|(?<!s)s\Z")


def split_unit(text: str, other: str | None = None) -> tuple[str, str | None]:
    """(value, unit in one spelling) of cleaned text; None when there is no unit.

    Letters behind a number may be a product: `5 m` and `5 km/h` have a unit when the `other` side states it.
    """
    if text.endswith("%"):
        return text[:-1].rstrip(), "%"
    if (match := _DEGREES.search(text)) and not TRIGONOMETRY.search(text):
        return text[: match.start()].rstrip(), _TEMPERATURES[match[1] or match[2]]
    match = _TEXT.search(text) or _WORDS.search(text)
    if match is None or match.start() == 0:
        return text, None
    words = re.sub(r"\\text|[{}]", " ", match[1].replace("\\Omega", "ohm").replace("\\cdot", " "))
    words = re.sub(r"\\mu\s*", "micro", words)
    if _NO_UNITS & set(words.lower().split()):
        return text, None
    if match.re is _TEXT:
        return text[: match.start()].rstrip(), _spelt(words, None) or None
    unit = _spelt(words, match[2])
    if unit == other or (text[match.start() - 1] != " " and _stands_alone(words.strip(), unit)):
        return text[: match.start()].rstrip(), unit
    return text, None


def _stands_alone(words: str, unit: str) -> bool:
    """Whether bare words behind a number are a unit, known or not, and no product of letters."""
    if len(words) == 1 or "/" in words:
        return False
    lengths = [len(word) for word in words.split()]
    return _measure(unit) is not None or (min(lengths) > 1 and max(lengths) > 3)


def _spelt(words: str, power: str | None) -> str:
    """One spelling of a unit: `mile/hour` of "miles per hour", `m/second^2` of "m s^-2"."""
    name = " ".join(words.lower().replace(".", "").split())
    for prefix, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3"), ("cu ", "3")):
        if name.startswith(prefix):
            name, power = name.removeprefix(prefix), exponent
    name = _INVERSE.sub(r"/\1^\2", _SPELLINGS.get(name, name)).replace(" ^ ", "^")
    sides = re.split(r" ?/ ?| per ", name.replace("^1", ""))
    return "/".join(_one_spelling(side) for side in sides) + (f"^{power}" if power else "")


def _one_spelling(name: str) -> str:
    name, mark, power = name.partition("^")
    name = _SPELLINGS.get(name.strip(), name.strip())
    if name not in _MEASURES:
        name = _PLURAL.sub("", name)
        name = _SPELLINGS.get(name, name)
    return name + mark + power.strip()


def _measure(unit: str) -> tuple[str, Fraction] | None:
    """(what is measured, in how many of the first such unit) of a unit we know; `mile/hour` is a quotient."""
    name, _, power = unit.partition("^")
    parts = [_MEASURES.get(part) for part in name.split("/")]
    top, bottom = parts[0], parts[-1]
    if top is None or bottom is None or len(parts) > 2 or (power and len(parts) == 2):
        return None
    if len(parts) == 2:
        return f"{top[0]}/{bottom[0]}", top[1] / bottom[1]
    return top[0] + power, top[1] ** int(power or 1)


def conversion(unit: str | None, wanted: str | None) -> Fraction | None:
    """What a value in `unit` is multiplied by to be in `wanted`; None when one cannot become the other.

    A missing unit agrees with every unit, as does the word "units".
    """
    if not unit or not wanted or unit == wanted:
        return Fraction(1)
    if "unit" in (unit.partition("^")[0], wanted.partition("^")[0]):
        return Fraction(1)
    if "degree" in (unit, wanted) and {unit, wanted} & {"celsius", "fahrenheit"}:
        return Fraction(1)  # of which scale was left out
    measure, goal = _measure(unit), _measure(wanted)
    return measure[1] / goal[1] if measure and goal and measure[0] == goal[0] else None
