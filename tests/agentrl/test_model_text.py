"""Readers of model and tool text: linear time on a megabyte of anything, and no exception."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import agentrl
import agentrl_envs
import agentrl_sandbox
from agentrl.renderers.hermes import _calls, _spoken_calls
from agentrl.renderers.text import fenced_code
from benchmarks.readers import READERS, fragments, texts

LENGTH = 250_000
SECONDS = 1.0
"""CPU time allowed for that on a busy machine; what is not linear takes many. How long a megabyte takes is
measured by `benchmarks/readers.py`."""


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
        for text in texts(5_000):
            started = time.process_time()
            sum(1 for _ in pattern.finditer(text))
            spent = time.process_time() - started
            if spent > 0.5:
                slow[name] = (text[:20], round(spent, 2))
    assert slow == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_is_linear(name: str) -> None:
    prepare, read = READERS[name]
    for text in texts(LENGTH):
        value = prepare(text)
        started = time.process_time()
        read(value)
        assert time.process_time() - started < SECONDS, text[:20]


FRAGMENTS = (
    st.sampled_from(fragments()) | st.text(max_size=8) | st.just('{"name": "f", "arguments": {"x": 1}}')
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
