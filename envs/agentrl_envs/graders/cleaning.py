r"""LaTeX as models and data sets write it, brought to one spelling. Changes marks, never mathematics.

Sizes and spaces go, `\dfrac` becomes `\frac`, `10,\!000`, `10{,}000` and `10\,000` lose their separators,
Unicode signs become their commands, Python becomes LaTeX (`sqrt(2)`, `x**10`, `pi`). Linear in the length of
the text. Knows nothing of what the text means.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

__all__ = ["cleaned", "compact", "join_thousands"]

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ",
    "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "²": "^{2}", "³": "^{3}", "⁴": "^{4}", "“": '"',
    "”": '"', "’": "'", "√": r"\sqrt ", "€": "", "£": "", "…": r"\ldots ",
}  # fmt: skip
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|mathopen|mathclose|bf|rm|boldsymbol)"
    r"(?![A-Za-z])\.?"
)
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$")
_SEPARATED = re.compile(r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,|\\!)\s*(?=\d{3}(?!\d))")
_ROW_GAPS = re.compile(r"(?<=\\\\)\[[\d.]+ ?(?:pt|em|ex|mm|cm)\]")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|hspace\{[^{}]*\}|enspace(?![A-Za-z]))|~|\s+")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_TEXTS = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf)|mathrm|mbox|operatorname)\s*(?=\{)")
_FONTS = re.compile(r"\\(?:math(?:bf|it|sf|cal|bb)|text(?=\s*\{[^{}]*\{))\s*(?=\{)")  # around mathematics
_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\d,])")

_PYTHON = re.compile(r"sqrt|pi|oo|theta|\*\*|\^\s*\(")
_NAMES = re.compile(r"\\text\s*\{[^{}]*\}|(?<![\\A-Za-z])(?:sqrt(?=\s*[\d(])|(?:pi|oo|theta)(?![A-Za-z]))")
_LATEX = {"sqrt": r"\sqrt", "pi": r"\pi ", "oo": r"\infty ", "theta": r"\theta "}
_ROOT_OF_DIGITS = re.compile(r"\\sqrt\s*(\d+(?:\.\d+)?)")
_POWER = re.compile(r"\*\*\s*(-?\d+)?")
_BRACKET = re.compile(r"(\\sqrt|\^)?\s*\(|\)")


def _plain(character: str) -> str:
    if character in _UNICODE:
        return _UNICODE[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:  # digits of any script
        return str(digit)
    if unicodedata.category(character) in ("Cf", "Cc", "Cs"):  # direction marks, NUL, lone surrogates
        return ""
    wide = "\uff01" <= character <= "\uff5e"
    return chr(ord(character) - 0xFEE0) if wide else " " if character.isspace() else character


def _from_python(text: str) -> str:
    r"""Names, powers and roots of Python as LaTeX; `\sqrt13` is the root of 13, whatever TeX makes of it."""
    text = _NAMES.sub(lambda match: _LATEX.get(match.group(), match.group()), text)
    text = _ROOT_OF_DIGITS.sub(r"\\sqrt{\1}", text)
    text = _POWER.sub(lambda match: f"^{{{match[1]}}}" if match[1] else "^", text)
    opened: list[bool] = []  # brackets not closed yet; True around the argument of a root or power

    def braced(match: re.Match[str]) -> str:
        if match.group() == ")":
            return "}" if opened and opened.pop() else ")"
        opened.append(match[1] is not None)
        return match[1] + "{" if match[1] else match.group()

    arguments = _BRACKET.sub(braced, text)
    return text if any(opened) else arguments


@lru_cache(maxsize=2048)
def cleaned(text: str) -> str:
    """`text` in one spelling; "" for what is nothing but marks."""
    if not text.isascii():
        text = "".join(c if c.isascii() else _plain(c) for c in text)
    text = _DELIMITERS.sub(" ", text) if "$" in text or "\\" in text else text
    text = text.replace("\\$", "")
    if "\\" in text or "{" in text:
        text = _ROW_GAPS.sub("", _SIZES.sub("", text))
        text = _SEPARATED.sub("", text)
        text = (
            text.replace("\\!", "").replace("\\%", "%").replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
        )
        text = _FONTS.sub("", _TEXTS.sub(r"\\text", _FRACTIONS.sub(r"\\frac", text)))
        text = (
            text.replace("\\lt", "<").replace("\\gt", ">")
            if re.search(r"\\[lg]t(?![A-Za-z])", text)
            else text
        )
    text = _from_python(text) if _PYTHON.search(text) else text
    text = _SPACES.sub(" ", text).strip()
    return text.rstrip(" .,;:").strip() if text[-1:] in ".,;:" else text


def join_thousands(text: str) -> str:
    """`1,234` as `1234`, where no bracket could make the comma a separator of items."""
    if "," not in text or any(mark in text for mark in "([") or "\\{" in text:
        return text
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


def compact(text: str) -> str:
    """`text` without spaces that separate nothing, for comparing two spellings by their characters."""
    text = re.sub(r"\s+(?![A-Za-z])|(?<![A-Za-z])\s+", "", text)
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
