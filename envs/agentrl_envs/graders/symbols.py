r"""LaTeX of one value, spelt so that the parser keeps what tells two symbols apart.

Left alone, latex2sympy reads `I_0` as the imaginary unit and `\gamma(x)` as the Gamma function, drops primes
and transposes, evaluates `\gcd(m,n)` and `\frac{dy}{dx}` to numbers, and knows neither `E_1` nor `\dot x`.
Here each such symbol, derivative or applied function becomes a variable with a name of its own, and decimals
become fractions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

__all__ = ["readable", "symbol_name", "with_primes"]

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|varrho|"
    "sigma|varsigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|"
    "Omega|hbar|ell|nabla|aleph"
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
_LEIBNIZ = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)\s*(\\?[A-Za-z]+(?:_\w)?)\s*\}\s*\{\s*(d|\\partial)\s*(\\?[A-Za-z]+(?:_\w)?)\s*\}"
)
_DECIMAL = re.compile(r"(\^\s*)?(\d*\.\d+)")
_ROOT = re.compile(r"\\sqrt\s*([A-Za-z]|\\[A-Za-z]+)(?![A-Za-z\[{])")
_FACTORIAL = re.compile(r"(\d+|[A-Za-z]|\\variable\{\w+\}|\([^()]*\))\s*(!+)\s*\^")
_FUNCTIONS = "fghFGHPQ"  # letters that are applied to whatever stands in brackets behind them
_NO_NUMBERS = {"gcd", "lcm"}  # evaluated by the parser as if letters were coprime numbers
_MISREAD = "IETd"  # imaginary unit, an error, transpose, differential


def symbol_name(text: str) -> str:
    r"""The name of a symbol without its mark-up: `m_{\max }` and `m_{\text{max}}` are one."""
    return re.sub(r"\\text|[{}\s\\_]", "", text)


def with_primes(text: str) -> str:
    r"""`\frac{dy}{dx}` as `y'`, for comparison with a side that writes primes or dots."""
    return _LEIBNIZ.sub(lambda match: f"{match[1]}'" if match[2] == "d" else match.group(), text)


def _variable(name: str) -> str:
    return "\\variable{" + "".join(c if c.isascii() and c.isalnum() else f"Z{ord(c):x}Z" for c in name) + "}"


def _name(match: re.Match[str]) -> str:
    base = next(
        b for b in (match["inner"], match["bare"], match["greek"], match["text"], match["letter"]) if b
    )
    marks = match["marks"] or ""
    primes = marks.count("'") + marks.count("prime") + {"dot": 1, "ddot": 2}.get(match["accent"] or "", 0)
    subscript = symbol_name(re.sub(_PRIMES, "", marks))
    if "+" in subscript:
        subscript = "+".join(sorted(subscript.split("+")))
    accent = (
        (match["accent"] or "").removeprefix("wide").removeprefix("d").removeprefix("dot").removeprefix("ot")
    )
    accent = {"overline": "bar", "overrightarrow": "vec"}.get(accent, accent)
    return accent + symbol_name(base) + ("_" + subscript if subscript else "") + "'" * primes


def readable(text: str, canonical: Callable[[str], str]) -> str:
    """`text` as the parser reads it rightly. canonical: one spelling of an argument of a function."""
    text = _LEIBNIZ.sub(lambda m: _variable(f"d{symbol_name(m[1])}/d{symbol_name(m[3])}"), _with_braces(text))
    text = _ROOT.sub(r"\\sqrt{\1}", _DECIMAL.sub(_exact, text))
    out: list[str] = []
    position = 0
    keep = "\\int" in text  # where dx is a differential
    while (match := _TOKEN.search(text, position)) is not None:
        out.append(text[position : match.start()])
        position = match.end()
        if (
            match["command"] in _NO_NUMBERS
            and (found := _applied(text, position))
            and re.search("[A-Za-z]", found[0])
        ):
            out.append(_variable(match["command"] + _arguments(found[0], canonical)))
            position = found[1]
        elif match["marks"] is None or match.group().startswith("\\variable"):
            out.append(match.group())
            if match["command"] == "variable":
                position = text.index("}", position) + 1
                out[-1] = text[match.start() : position]
        else:
            piece, position = _symbol(text, match, canonical, keep)
            out.append(piece)
    return _FACTORIAL.sub(r"{\1\2}^", "".join([*out, text[position:]]))


def _symbol(text: str, match: re.Match[str], canonical: Callable[[str], str], keep: bool) -> tuple[str, int]:
    """(what to write for a symbol, where to go on), with its arguments when it is a function's name."""
    name, letter = _name(match), match["letter"]
    found = _applied(text, match.end()) if name[:1] not in ("e", "i") or len(name) > 1 else None
    simple = found is not None and re.fullmatch(r"\s*\\?[A-Za-z]+\s*", found[0]) and found[0].strip() != name
    if (
        found
        and (simple or (name[0] in _FUNCTIONS and match["greek"] is None) or match["text"])
        and name != "Gamma"
    ):
        return _variable(name + _arguments(found[0], canonical)), found[1]
    plain = letter and not match["marks"] and (letter not in _MISREAD or (keep and letter == "d"))
    if plain or name == "Gamma":
        return match.group(), match.end()
    return _variable(name), match.end()


def _applied(text: str, start: int) -> tuple[str, int] | None:
    """(what stands in the round brackets that open at `start`, where they end)."""
    if text[start : start + 1] != "(":
        return None
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i], i + 1
    return None


def _arguments(text: str, canonical: Callable[[str], str]) -> str:
    return "(" + ",".join(canonical(part) for part in text.split(",")) + ")"


def _exact(match: re.Match[str]) -> str:
    number = Fraction(match[2])
    fraction = f"\\frac{{{number.numerator}}}{{{number.denominator}}}"
    return f"^{{{fraction}}}" if match[1] else fraction


def _with_braces(text: str) -> str:
    r"""`\frac\pi6` and `\frac{x}y` with their braces."""
    out, position = [], 0
    while (at := text.find("\\frac", position)) >= 0:
        out.append(text[position : at + 5])
        position = at + 5
        for _ in range(2):
            inner, position = _argument(text, position)
            out.append("{" + _with_braces(inner) + "}")
    return "".join([*out, text[position:]])


def _argument(text: str, position: int) -> tuple[str, int]:
    """(argument of a command, where it ends): what is in braces, a command, or one character."""
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] != "{":
        match = re.compile(r"\\[A-Za-z]+|.?", re.DOTALL).match(text, position)
        return (match.group(), match.end()) if match else ("", position)
    depth = 0
    for i in range(position, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[position + 1 : i], i + 1
    return text[position + 1 :], len(text)
