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
    "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ", "ℝ": r"\mathbb{R}",
    "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ", "ω": r"\omega ", "Ω": r"\Omega ",
    "“": '"', "”": '"', "’": "'", "′": "'", "√": r"\sqrt ", "€": "", "£": "", "…": r"\ldots ", "✓": "",
    "✔": "", "℃": r"^\circ C", "℉": r"^\circ F", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "∖": r"\setminus ",
}  # fmt: skip
# Words that introduce an answer and say nothing of it.
_INTRODUCTION = re.compile(
    r"(?:=|\\(?:Rightarrow|implies|Longrightarrow)(?![A-Za-z])|\\text\s*\{\s*(?:(?:so|thus|hence|therefore|the"
    r"|final|correct|required|set|exactly|precisely|simply|answer|solution|result|value|is|are|equals|to|be)\b"
    r"[\s:,]*)+\}|:)\s*",
    re.IGNORECASE,
)
_SIZES = (
    "left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|mathopen|mathclose|mathop|mathbin|bf|rm|bm"
    "|boldsymbol|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|underline|fbox|boxed"
    "|therefore|checkmark|blacksquare|square"
)
_LOOKS = [  # in this order
    (re.compile(pattern), usual)
    for pattern, usual in (
        (rf"\\(?:{_SIZES})(?![A-Za-z])\.?|\\(?:text)?color(?:box)?\s*(?:\[[^][]*\])?\{{[^{{}}]*\}}", ""),
        (r"\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|split|equation\*?)\}&?", ""),
        (r"(?<=\\\\)\[[\d.]+ ?(?:pt|em|ex|mm|cm)\]", ""),  # gaps between rows
        (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,|\\!)\s*(?=\d{3}(?!\d))", ""),  # separators of thousands
        (r"\\mathrm\s+([a-z])(?![A-Za-z])", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text(?:bf|it|rm|normal|sf)|mathrm|mbox|operatorname)\s*(?=\{)", r"\\text"),
        (r"\\(?:math(?:bf|it|sf|cal)|text(?=\s*\{[^{}]*\{))\s*(?=\{)", ""),  # around mathematics
        (r"\{([^{}\\]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
    )
]
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$")
_USUAL = {
    "\\!": "", "\\%": "%", "{:}": ":", "\\colon": ":", "\\lbrace": "\\{", "\\rbrace": "\\}",
    "\\not=": "\\ne ",
    "\\backslash": "\\setminus ",
}  # fmt: skip
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z{}()\[\],;!%])")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|hspace\{[^{}]*\}|enspace(?![A-Za-z]))|~|\s+")
PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?\Z", re.ASCII)  # the usual answer, quickly
_THOUSANDS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_UPRIGHT = re.compile(r"\\text\s*\{\s*(?:(e)\s*\}(?=\s*\^)|(i)\s*\}|(d)\s*\}(?=\s*[a-z]))")
_POSITIVE = re.compile(r"(?<![\w)}\]!'])\s*\+\s*(?=\\infty|oo(?![A-Za-z]))")

_CALLS = (
    "a?(?:sin|cos|tan)h?|arc(?:sin|cos|tan|cot|sec|csc)h?|ar(?:sin|cos|tan)h|cot|sec|csc|ln|log|exp|gcd|lcm"
    "|max|min|det"
)
_PYTHON = re.compile(r"sqrt|pi|oo|theta|\*\*|\^\s*\(|\b[a-zA-Z]{2,}\(|(?<![A-Za-z\\])C\(|\\text")
_NAMES = re.compile(
    rf"\\text\s*\{{\s*(?P<upright>{_CALLS})\s*\}}|\\text\s*\{{[^{{}}]*\}}|\bE(?=\s*\*\*)"
    rf"|(?<![\\A-Za-z])(?:(?:np|math|sp|sympy)\.)?"
    rf"(?P<name>sqrt(?=\s*[\d(])|(?:pi|oo|theta)(?![A-Za-z])|(?:{_CALLS})(?=\s*\())"
)
_LATEX = {"sqrt": r"\sqrt", "pi": r"\pi ", "oo": r"\infty ", "theta": r"\theta ", "E": "e"}
_LATEX |= {f"a{name}": f"\\arc{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")}
_CALLED = {  # what Python calls by other names
    r"(?<![\\A-Za-z])Rational\s*\(([^(),]*),([^(),]*)\)": r"\\frac{\1}{\2}",
    r"(?<![\\A-Za-z])(?:C|comb|binom|binomial)\s*\(([^(),]*),([^(),]*)\)": r"\\binom{\1}{\2}",
    r"(?<![\\A-Za-z])factorial\s*\(([^(),]*)\)": r"(\1)!",
    r"(?<![\\A-Za-z])[Aa]bs\s*\(([^(),]*)\)": r"|\1|",
}
_ROOT_OF_DIGITS = re.compile(r"\\sqrt\s*(\d+(?:\.\d+)?)")
_POWER = re.compile(r"\*\*\s*(-?\d+)?")
_BRACKET = re.compile(r"(\\sqrt|\^)?\s*\(|\)")
_FORMS = {"<fraction>": "{}", "<super>": "\x01{}\x02", "<sub>": "\x03{}\x04", "<font>": "{}"}


def _plain(character: str) -> str:
    if character in _UNICODE:
        return _UNICODE[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:  # digits of any script
        return str(digit)
    if (parts := unicodedata.decomposition(character).split()) and parts[0] in _FORMS:
        letters = "".join(c if c.isascii() else _plain(c) for c in (chr(int(part, 16)) for part in parts[1:]))
        top, slash, bottom = letters.partition("/")
        return f"\\frac{{{top}}}{{{bottom}}}" if slash else _FORMS[parts[0]].format(letters)
    if unicodedata.category(character) in ("Cf", "Cc", "Cs"):  # direction marks, NUL, lone surrogates
        return ""
    wide = "\uff01" <= character <= "\uff5e"
    return chr(ord(character) - 0xFEE0) if wide else " " if character.isspace() else character


def _latex(match: re.Match[str]) -> str:
    name = match["name"] or match["upright"] or match.group()
    return _LATEX.get(name, f"\\{name}" if match["name"] or match["upright"] else name)


def _from_python(text: str) -> str:
    r"""Names, powers and roots of Python as LaTeX; `\sqrt13` is the root of 13, whatever TeX makes of it."""
    for call, latex in _CALLED.items():
        text = re.sub(call, latex, text)
    text = _NAMES.sub(_latex, text)
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
    if PLAIN_NUMBER.match(text):
        return text
    if not text.isascii():
        text = "".join(c if c.isascii() else _plain(c) for c in text)
        for opening, closing, mark in (("\x01", "\x02", "^"), ("\x03", "\x04", "_")):
            text = text.replace(closing + opening, "").replace(opening, mark + "{").replace(closing, "}")
    text = text.strip() if text.isprintable() else _CONTROLS.sub("", text).strip()
    if "\\\\" in text and ("\\begin" not in text or "\\\\begin" in text):  # backslashes doubled by JSON
        text = text.replace("\\\\", "\\") if "\\begin" in text else _DOUBLED.sub(r"\\", text)
    text = _DELIMITERS.sub(" ", text) if "$" in text or "\\" in text else text
    text = text.replace("\\$", "")
    text = _latex_marks(text) if "\\" in text or "{" in text else text
    text = _from_python(text) if _PYTHON.search(text) else text
    text = _SPACES.sub(" ", _POSITIVE.sub("", text) if "+" in text else text).strip()
    text = text.rstrip(" .,;:\\").strip() if text[-1:] in ".,;:\\" else text
    while (match := _INTRODUCTION.match(text)) and match.end() < len(text):
        text = text[match.end() :]
    return text


def _latex_marks(text: str) -> str:
    """Sizes, fonts and other commands that change the looks of a formula only."""
    for mark, usual in _LOOKS:
        text = mark.sub(usual, text)
    for written, usual in _USUAL.items():
        text = text.replace(written, usual)
    return _UPRIGHT.sub(lambda m: text if m.group() == text else m[1] or m[2] or m[3], text)


def join_thousands(text: str) -> str:
    """`1,234` as `1234`, where no bracket could make the comma a separator of items."""
    if "," not in text or any(mark in text for mark in "([") or "\\{" in text:
        return text
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


def compact(text: str) -> str:
    """`text` without spaces that separate nothing, for comparing two spellings by their characters."""
    text = re.sub(r"\s+(?![A-Za-z])|(?<![A-Za-z])\s+", "", text)
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
