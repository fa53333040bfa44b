"""Readers of model and tool text: linear time on a megabyte of anything, and no exception."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentrl
import agentrl_envs
import agentrl_sandbox
from agentrl.inference.scripted import ByteTokenizer
from agentrl.renderers.hermes import _calls, _spoken_calls
from agentrl.renderers.making import make_renderer
from agentrl.renderers.text import cut_text, fenced_code
from agentrl_sandbox.result import plain as plain_output

LENGTH = 1_000_000
PIECES = (
    "\n", " ", "a", "`", "```\n", "```python\n", "<code>", "</code>", "<tool_call>", "<tool_call>{", "</think>", "\\boxed{", "{", "}", "[",
    "(", "$", "\\[", "\\frac{", "answer is ", "answer:", "1", "1,", "1/", "-1 ", ".", "\x1b[", "\x1b]", "\x9b", "\r", "= ", "\\", '"',
    "\\text{", ">>> ", "x, ", "(A", "*", "\x00", "\ud800",
)  # fmt: skip
SECONDS = 1.0
"""CPU time allowed for a megabyte on a busy machine; what is not linear takes minutes."""


def adversarial(length: int = LENGTH) -> Iterator[str]:
    for piece in PIECES:
        yield piece * (length // len(piece))
    yield "```" + "\n" * length + "x"
    yield "<tool_call>" + " " * length + "{"
    yield "<code>" * (length // 1000) + " \n" * (length // 2)
    yield "a\n" * (length // 2) + "```"


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """All compiled patterns of the three packages that read text, by where they stand."""
    for package in (agentrl, agentrl_envs, agentrl_sandbox):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if any(
                part in found.name
                for part in ("vllm_extension", "inside.", "hostile", "zygote", "docker_entry")
            ):
                continue
            try:
                module = importlib.import_module(found.name)
            except ImportError:
                continue
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                    yield f"{found.name}.{name}", value


FOREIGN = ("renderer", "rollout", "evaluation", "endpoint", "result", "report", "messages", "plain")
"""Parts of names of modules whose patterns search text of models and tools. The graders' are matched against
answers of bounded length, and `tests/envs/test_extraction.py` gives their readers a megabyte."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_regular_expression_over_foreign_text_is_linear() -> None:
    """On 5,000 characters what is worse than quadratic takes seconds, and what is linear a millisecond."""
    slow: dict[str, tuple[str, float]] = {}
    seen = {name: pattern for name, pattern in patterns() if any(part in name for part in FOREIGN)}
    assert len(seen) > 10
    for name, pattern in seen.items():
        for text in adversarial(LENGTH // 200):
            started = time.process_time()
            sum(1 for _ in pattern.finditer(text))
            spent = time.process_time() - started
            if spent > 0.5:
                slow[name] = (text[:20], round(spent, 2))
    assert slow == {}


def readers() -> dict[str, Any]:
    tokenizer = ByteTokenizer()
    code = make_renderer(tokenizer, "code")
    return {
        "code block": fenced_code,
        "code call": lambda text: code._read_call(text, [1]),  # type: ignore[attr-defined]
        "code call, closed": lambda text: code._read_call(f"<code>{text}</code>", [1]),  # type: ignore[attr-defined]
        "calls": _calls,
        "calls after a thought": _spoken_calls,
        "cut": lambda text: cut_text(text, 2048),
        "terminal output": plain_output,
        "neutral": code._codec.neutral,  # type: ignore[attr-defined]
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(readers()))
def test_every_reader_is_linear(name: str) -> None:
    reader = readers()[name]
    for text in adversarial():
        started = time.process_time()
        reader(text)
        assert time.process_time() - started < SECONDS, text[:20]


FRAGMENTS = st.sampled_from(PIECES) | st.text(max_size=8) | st.just('{"name": "f", "arguments": {"x": 1}}')


@settings(max_examples=300)
@given(st.lists(FRAGMENTS, max_size=30).map("".join))
def test_calls_are_found_in_any_text(text: str) -> None:
    found = _calls(text)
    assert len(found) <= text.count("<tool_call>")
    ends = [0]
    for begin, stop, end in found:
        assert ends[-1] <= begin < stop <= end <= len(text) or begin == stop
        assert text.startswith("<tool_call>", begin)
        assert end == stop or text[stop:end] == "</tool_call>"
        ends.append(end)
    spoken = _spoken_calls(text)
    assert spoken == found[len(found) - len(spoken) :]
    assert fenced_code(text) is not None


@pytest.mark.parametrize(
    ("text", "bodies"),
    [
        ('<tool_call>{"a": 1}</tool_call>', ['{"a": 1}']),
        ("<tool_call>a<tool_call>b</tool_call>c", ["a", "b"]),
        ("<tool_call>a", ["a"]),
        # A thought ends where it says so outside of a call; a mention of the tag in it opens none.
        ('I may use <tool_call> here</think>\n<tool_call>{"n": "x"}</tool_call>', ['{"n": "x"}']),
        (
            '<think>a</think><tool_call>{"code": "print(\'</think>\')"}</tool_call>',
            ['{"code": "print(\'</think>\')"}'],
        ),
        (
            '<tool_call>{"c": "</think>"}</tool_call> and <tool_call>{"d": 1}</tool_call>',
            ['{"c": "</think>"}', '{"d": 1}'],
        ),
        ('<think><tool_call>{"c": 1}</tool_call></think> done', []),
        ('<tool_call>{"c": "</think>", "x": NaN}</tool_call>', ['{"c": "</think>", "x": NaN}']),
        ('<think>x</think><tool_call>{"c": "</think></think>"}</tool_call>', ['{"c": "</think></think>"}']),
    ],
)
def test_calls_after_a_thought(text: str, bodies: list[str]) -> None:
    assert [text[begin + len("<tool_call>") : stop] for begin, stop, _ in _spoken_calls(text)] == bodies


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ("\n```python\nprint(1)\n```\n", "print(1)"),
        ("```\nx\n", "x"),
        ("print(1)\n", "print(1)"),
        ("\n  x = 1\n", "  x = 1"),
        ("```py\n\n  a\n\n```", "  a"),
        ("```python\n```", ""),
        ("``` `odd`\nx\n```", "``` `odd`\nx\n```"),
        ("```python\ns = '```'\n```", "s = '```'"),
    ],
)
def test_code_in_and_out_of_fences(block: str, code: str) -> None:
    assert fenced_code(block) == code
