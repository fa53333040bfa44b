r"""LaTeX of one value, spelt so that the parser keeps what tells two symbols apart.

Left alone, latex2sympy reads `I_0` as the imaginary unit and `\gamma(x)` as the Gamma function, drops primes
and transposes, evaluates `\gcd(m,n)` and `\frac{dy}{dx}` to numbers, and knows neither `E_1` nor `\dot x`.
Here each such symbol, derivative or applied function becomes a variable with a name of its own, and decimals
become fractions.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["readable", "symbol_name"]

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|varrho|"
    "sigma|varsigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|"
    "Psi|Omega|hbar|ell|nabla|aleph"
)
_ACCENTS = "dot|ddot|vec|hat|bar|tilde|overline|overrightarrow|widehat|widetilde|mathbb"
_SUBSCRIPT = r"\s*_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|\w)"
_PRIMES = r"'+|\s*\^\s*\{\s*(?:\\prime\s*|'\s*)+\}|\s*\^\s*\\prime"
_TOKEN = re.compile(
    rf"(?:\\(?P<accent>{_ACCENTS})\s*(?:\{{(?P<inner>[^{{}}]*)\}}|(?P<bare>\\[A-Za-z]+|[A-Za-z]))"
    rf"|\\(?P<greek>{_GREEK})(?![A-Za-z])|\\text\s*\{{(?P<text>[^{{}}]*)\}}|(?P<letter>(?<!\\)[A-Za-z]))"
    rf"(?P<marks>(?:{_SUBSCRIPT}|{_PRIMES})*)"
    r"|\\(?:begin|end)\s*\{[^{}]*\}|\\(?P<command>[A-Za-z]+)"
)
_DIFFERENTIAL = r"\{\s*(d|\\partial)\s*(\\?[A-Za-z]+(?:_\w)?)\s*\}"
_LEIBNIZ = re.compile(rf"\\frac\s*{_DIFFERENTIAL}\s*{_DIFFERENTIAL}")
_DECIMAL = re.compile(r"(\^\s*)?(\d*\.\d+)")
_ROOT = re.compile(r"\\sqrt\s*([A-Za-z]|\\[A-Za-z]+)(?![A-Za-z\[{])")
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_BARE_TOP = re.compile(r"\\frac\s*(\\[A-Za-z]+|\w)")  # \frac\pi6 and \frac{x}y
_BARE_BOTTOM = re.compile(rf"(\\frac\s*{_GROUP})\s*(\\[A-Za-z]+|\w)")
_FACTORIAL = re.compile(r"(\d+|[A-Za-z]|\\variable\{\w+\}|\([^()]*\))\s*(!+)\s*\^")
_DOTS = {"dot": 1, "ddot": 2}
_ACCENT_NAMES = {"overline": "bar", "overrightarrow": "vec", "widehat": "hat", "widetilde": "tilde"}
_FUNCTIONS = "fghFGHPQ"  # letters that are applied to whatever stands in brackets behind them
_NO_NUMBERS = {"gcd", "lcm"}  # evaluated by the parser as if letters were coprime numbers
_MISREAD = "IETd"  # imaginary unit, an error, transpose, differential


def symbol_name(text: str) -> str:
    r"""The name of a symbol without its mark-up: `m_{\max }` and `m_{\text{max}}` are one."""
    return re.sub(r"\\text|[{}\s\\_]", "", text)


def _variable(name: str) -> str:
    return "\\variable{" + "".join(c if c.isascii() and c.isalnum() else f"Z{ord(c):x}Z" for c in name) + "}"


def _name(match: re.Match[str]) -> str:
    base = next(filter(None, match.group("inner", "bare", "greek", "text", "letter")))
    accent, marks = match["accent"] or "", match["marks"] or ""
    primes = marks.count("'") + marks.count("prime") + _DOTS.get(accent, 0)
    subscript = symbol_name(re.sub(_PRIMES, "", marks))
    accent = "" if accent in _DOTS else _ACCENT_NAMES.get(accent, accent)
    return accent + symbol_name(base) + ("_" + subscript if subscript else "") + "'" * primes


def readable(text: str) -> str:
    """`text` as the parser reads it rightly."""
    text = _BARE_BOTTOM.sub(r"\1{\2}", _BARE_TOP.sub(r"\\frac{\1}", text))
    text = _LEIBNIZ.sub(lambda m: _variable(f"d{symbol_name(m[2])}/d{symbol_name(m[4])}"), text)
    text = _ROOT.sub(r"\\sqrt{\1}", _DECIMAL.sub(_exact, text))
    out: list[str] = []
    position = 0
    while (match := _TOKEN.search(text, position)) is not None:
        out.append(text[position : match.start()])
        command, piece, position = match["command"], match.group(), match.end()
        if command == "variable":
            position = text.index("}", position) + 1
            piece = text[match.start() : position]
        elif command in _NO_NUMBERS and re.search("[A-Za-z]", _inside(text, position)):
            piece, position = _application(command or "", text, position)
        elif match["marks"] is not None:
            piece, position = _symbol(text, match)
        out.append(piece)
    return _FACTORIAL.sub(r"{\1\2}^", "".join([*out, text[position:]]))


def _symbol(text: str, match: re.Match[str]) -> tuple[str, int]:
    """(what to write for a symbol, where to go on), with its arguments when it is a function's name."""
    name, letter, end = _name(match), match["letter"], match.end()
    inside = _inside(text, end) if name not in ("e", "i", "Gamma") else ""
    simple = re.fullmatch(r"\s*\\?[A-Za-z]+\s*", inside) and inside.strip() != name
    if inside and (simple or match["text"] or (name[0] in _FUNCTIONS and not match["greek"])):
        return _application(name, text, end)
    differential = letter == "d" and "\\int" in text
    if name == "Gamma" or (letter and not match["marks"] and (letter not in _MISREAD or differential)):
        return match.group(), end
    return _variable(name), end


def _application(name: str, text: str, end: int) -> tuple[str, int]:
    inside = _inside(text, end)
    return _variable(f"{name}({inside.replace(' ', '')})"), end + len(inside) + 2


def _inside(text: str, start: int) -> str:
    """What stands in the round brackets that open at `start`; "" when none do, or nothing closes them."""
    depth = 0
    for i in range(start, len(text) if text[start : start + 1] == "(" else start):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return text[start + 1 : i]
    return ""


def _exact(match: re.Match[str]) -> str:
    number = Fraction(match[2])
    fraction = f"\\frac{{{number.numerator}}}{{{number.denominator}}}"
    return f"^{{{fraction}}}" if match[1] else fraction
