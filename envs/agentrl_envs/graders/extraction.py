r"""The last answer that the model itself stated in a text.

Counts: the last balanced `\boxed{...}` (or `\fbox{...}`) outside thinking, code and tool output. Boxes that
follow each other with only a connective between them ("\boxed{3} and \boxed{4}") are one answer, the list "3,
4"; a box after other words replaces what came before (a model may correct itself). Knows nothing of
mathematics.
"""

from __future__ import annotations

import re

__all__ = ["answer_in", "boxed_answers", "last_answer", "model_text"]

# What a model writes between such marks is code, or a tool's words that it made up: never an answer.
_TAGS = "code|interpreter|tool_call|tool_response|tool_result|output|result"
_BLOCKS = re.compile(  # two letters are looked at first: most brackets are no tags
    rf"<(?=[ciort][eonu])({_TAGS})>.*?(?:</\1>|\Z)|```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_MOST_MARKS, _TAIL = 40_000, 60_000
"""Of a text with more boxes, braces and backslashes only so much of its end is read for an answer."""
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\[{}\\]|[{}]")
_SIMPLE = re.compile(r"\\boxed\{([^{}\\]*)\}")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s*+(\\[A-Za-z]+|[A-Za-z]+|[+-]?\d+|[\\+-])")
_CONNECTIVE = re.compile(
    r"(?:\s|\$|[,;.:&~]|\\[,;!: ]|\\q?quad|\\\\|\\[()\[\]]"
    r"|\\text(?:rm)?\{\s*(?:and|or)?\s*[,;]?\s*\}|\band\b|\bor\b)*"
)
_SPOKEN_OF = re.compile(rf"(?<!`)` *<({_TAGS})> *`(?!`)", re.IGNORECASE)
_INLINE_CODE = re.compile(r"`[^`\n]*`")


def model_text(text: str) -> str:
    """`text` without thinking, code blocks and tool output. Empty when thinking never ended."""
    if "<" in text:
        _, mark, tail = text.rpartition("</think>")
        if mark:
            text = tail
        elif "<think>" in text:
            text = text[: text.index("<think>")]
    if "`" in text and "<" in text:
        text = _without_tags_spoken_of(text)
    if "<" in text or "```" in text or "~~~" in text:
        text = _BLOCKS.sub(" ", text)
    return _INLINE_CODE.sub(" ", text) if "`" in text else text


def _without_tags_spoken_of(text: str) -> str:
    """`text` without tags in backticks that nothing closes afterwards: they are words, and open nothing."""
    lower = text.lower()
    closed = {tag: lower.rfind(f"</{tag.lower()}>") for tag in set(_SPOKEN_OF.findall(text))}
    return _SPOKEN_OF.sub(lambda tag: " " if tag.start() > closed[tag[1]] else tag[0], text)


def boxed_answers(text: str) -> list[tuple[int, int, str]]:
    r"""Every complete box as (start, end, content), in order; a box inside a box is part of the outer one.

    `\boxed 3` (no braces) is a box around one token, as in TeX. An unclosed box is no box.
    Linear in the text.
    """
    if text.count("boxed") == 1 and (simple := _SIMPLE.search(text)) and "\\fbox" not in text:
        return [(*simple.span(), simple[1])]  # the usual case
    found: list[tuple[int, int, int, int]] = []  # box, then its content
    opened: list[int] = []  # where each brace not closed yet opens: its box, or -1
    start, last = text.find("}"), text.rfind("}")  # no box with braces ends before one or after the other
    closing = text.count("}") + text.count("\\{")  # and none of more braces opens one
    for _ in range(closing if closing < 100 else 0):
        start = text.rfind("{", 0, max(start, 0))
    begin = text.rfind("\\", 0, max(start, 0)) if closing < 100 else 0
    for match in _BOX_OR_BRACE.finditer(text, max(begin, 0), last + 1):
        mark = match.group()
        if mark == "}":
            start = opened.pop() if opened else -1
            if start >= 0:
                while found and found[-1][0] > start:  # boxes inside this one
                    found.pop()
                found.append((start, match.end(), text.index("{", start) + 1, match.start()))
        elif mark[-1] == "{" and mark != "\\{":
            opened.append(match.start() if len(mark) > 1 else -1)
    found += [(*match.span(), *match.span(1)) for match in _BARE_BOX.finditer(text)]
    outer: list[tuple[int, int, str]] = []
    for start, end, first, stop in sorted(found):
        if not outer or start >= outer[-1][1]:
            outer.append((start, end, text[first:stop]))
    return outer


def last_answer(text: str | None) -> str | None:
    """The answer a model stated, None when it stated none. Several boxes in a row give "a, b"."""
    return answer_in(model_text(text)) if text and ("boxed" in text or "fbox" in text) else None


def answer_in(spoken: str) -> str | None:
    """As `last_answer`, of the model's own text."""
    if len(spoken) > _TAIL and sum(map(spoken.count, ("{", "}", "\\\\", "boxed", "fbox"))) > _MOST_MARKS:
        spoken = spoken[-_TAIL:]
    boxes = boxed_answers(spoken)
    if len(boxes) <= 1:
        return boxes[0][2].strip() or None if boxes else None
    run = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = spoken[box[1] : run[-1][0]]
        if len(between) > 80 or not _CONNECTIVE.fullmatch(between):
            break
        run.append(box)
    contents = list(dict.fromkeys(box[2].strip() for box in reversed(run)))
    stated = [content for content in contents if content]
    return ", ".join(stated) if stated else None
