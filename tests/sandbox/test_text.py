"""Text of a result: terminal escapes and controls are taken out, and nothing else with them."""

import re
import time

import pytest

from agentrl_sandbox import Result, Status
from agentrl_sandbox.result import plain

UNENDED = {
    "a title": "before \x1b]0;title",
    "a string of a device": "before \x1bPq#0;",
    "a privacy message": "before \x1b^",
    "an application command": "before \x1b_G",
    "a control sequence": "before \x1b[31",
    "an escape alone": "before \x1b",
    "one byte": "before \x9d0;title",
}


@pytest.mark.parametrize("what", UNENDED)
def test_an_escape_without_an_end_takes_nothing_along(what):
    # Fails where a string sequence may reach to the end of the text.
    result = Result(
        Status.ERROR,
        stdout=f"{UNENDED[what]}\nsecond line 42\n",
        error=f"{UNENDED[what]}\nZeroDivisionError: x",
        session_alive=False,
    )
    for words in ("before", "second line 42", "ZeroDivisionError: x", "The interpreter was restarted"):
        assert words in result.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.text)


@pytest.mark.parametrize(
    "part", ["\x1b]", "\x1b[", "\x1b]x\x1b[", "\x9b1", "\x1bPa\n", "\r", "\x1b[1 ", "\x1b"]
)
def test_the_time_for_escapes_is_linear(part):
    text = part * (1_000_000 // len(part))
    began = time.process_time()
    plain(text)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("10%\r50%\r100%\n", "100%\n"),
        ("a\r\nb\r\r\nc\r", "a\nb\nc"),
        ("a\nold\rnew\nz", "a\nnew\nz"),
        ("é\x07\x85\x1b[31mü\x7f", "éü"),
        ("\ud800\x07a", "\ufffda"),
        ("\t a\x0b", "\t a"),
    ],
)
def test_what_is_left_of_a_text(written, left):
    assert plain(written) == left


def test_beyond_the_most_escapes_the_controls_still_go():
    assert set(plain("a\x1b[1m\rb\n" * 150_000)) <= set("ab[1m\n")
