r"""Fuzz what the grader does in this process: extraction, the exact path, the published rule, canonical keys.

Coverage-guided, by atheris (needs `pip install atheris`, Linux, Python 3.11 to 3.13). The symbolic path runs in
children that can be killed and is covered by `tests/envs/test_grader_pool.py`; here nothing can be killed, so
nothing may raise, and nothing may take long::

    PYTHONPATH=envs:sandbox python scripts/fuzz_grader.py -max_total_time=3600 -max_len=400 corpus/

An input that breaks a rule is written to the working directory by libFuzzer and is the start of a test.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from typing import Any

atheris: Any = importlib.import_module("atheris")  # no stubs, and not a dependency of the project

with atheris.instrument_imports(include=["agentrl_envs.graders"]):
    from agentrl_envs.graders import Grader, Verdict, boxed_answers, last_answer, model_text
    from agentrl_envs.graders.comparison import CannotParse, Undecided, equal, exact_leaf

LIMIT_S = 2.0
"""CPU seconds for all checks of one input of a few hundred characters."""

FRAGMENTS = (
    "\\boxed{", "\\fbox{", "}", "{", "\\frac{1}{2}", "\\dfrac", "\\sqrt{2}", "\\text{ cm}", "\\left(", "\\right)", "^\\circ", "\\%",
    "1,234", "0.5", "-3", "10^{", "_{7}", "\\pm", "\\cup", "\\infty", "[0,1)", "x=", "\\leq", "\\begin{pmatrix}", "\\\\", "&",
    "\\end{pmatrix}", "\\text{(A)}", "<code>", "</code>", "```python\n", "```\n", "<interpreter>", "</interpreter>", "</think>",
    "\\$", "\\,", "\\!", " and ", "\\quad", "\\pi", "i", "e", "\\ln", "!", "٣", "½", "−", "\u200b", "\x00",
)  # fmt: skip

GRADER = Grader()
STRICT = Grader(mode="strict")


def text_of(data: Any) -> str:
    """Fragments of answers mixed with arbitrary text."""
    parts = []
    for _ in range(data.ConsumeIntInRange(0, 12)):
        if data.ConsumeBool():
            parts.append(FRAGMENTS[data.ConsumeIntInRange(0, len(FRAGMENTS) - 1)])
        else:
            parts.append(data.ConsumeUnicodeNoSurrogates(data.ConsumeIntInRange(0, 12)))
    return "".join(parts)


def check(raw: bytes) -> None:
    """The rules, on one input."""
    data = atheris.FuzzedDataProvider(raw)
    answer, gold = text_of(data), text_of(data)
    began = time.process_time()
    check_extraction(answer)
    check_verdicts(answer, gold)
    spent = time.process_time() - began
    if spent > LIMIT_S:
        raise AssertionError(f"{spent:.1f} CPU seconds for {answer!r} against {gold!r}")


def check_extraction(text: str) -> None:
    """What is found is part of the text; what is not the model's own is never found."""
    for start, end, content in boxed_answers(text):
        assert 0 <= start <= end <= len(text), (text, start, end)
        assert content in text, (text, content)
    found = last_answer(text)
    assert found is None or found in text, (text, found)
    model_text(text)
    hidden = f"<interpreter>\\boxed{{{'7' * 9}}}</interpreter>"
    assert "7" * 9 not in (last_answer(hidden + text) or "") or "7" * 9 in text, text


def check_verdicts(answer: str, gold: str) -> None:
    """Typed verdicts, no exceptions, and a text is never other than itself."""
    for one, other in ((answer, gold), (f"\\boxed{{{answer}}}", gold), (f"\\boxed{{{gold}}}", gold)):
        verdict = GRADER.exact(one, other)
        assert verdict is None or isinstance(verdict, Verdict), (one, other, verdict)
        assert isinstance(STRICT.exact(one, other), Verdict), (one, other)
        GRADER.canonical(one)
    if answer.strip():
        with contextlib.suppress(CannotParse, Undecided):
            assert equal(answer, answer, exact_leaf), answer
    with contextlib.suppress(CannotParse, Undecided, RecursionError):
        equal(answer, gold, exact_leaf)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
