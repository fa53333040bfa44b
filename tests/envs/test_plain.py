"""Text and JSON that others wrote: always readable in linear time, always writable."""

from __future__ import annotations

import contextlib
import enum
import json
import math
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_envs.messages import is_content_part
from agentrl_envs.plain import clean_text, plain, read_any_json, read_json, write_json


@pytest.mark.parametrize(
    "text", ['{"x": NaN}', "[Infinity]", "-Infinity", "1e999", '{"x": [-1e400]}', "[" * 100_000]
)
def test_what_is_no_number_or_too_deep_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"no number|deeply"):
        read_json(text)


def test_json_of_models() -> None:
    assert read_json('{"a": "two\nlines", "b": [1, 2.5, null]}') == {"a": "two\nlines", "b": [1, 2.5, None]}
    assert read_json('{"\\ud800": "x\\udfff"}') == {"\ufffd": "x\ufffd"}
    assert read_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert read_json(r'"\\ud800 \\\ud800 \uD83D\uDE00 \udc00\ud83d\ud83d\ude00"') == (
        "\\ud800 \\\ufffd \U0001f600 \ufffd\ufffd\U0001f600"
    )
    assert read_json('["\ud800", "\\n"]') == ["\ufffd", "\n"]
    assert read_any_json("[NaN, 1]")[1] == 1
    for text in ("1e400", "1" * 310 + ".0", "[1.0e0999]", '"', "1e+309"):
        with pytest.raises(ValueError):
            read_json(text)
    assert read_json("[1e308, 1.5e-999, 1" + "0" * 400 + "]")[:2] == [1e308, 0.0]
    with pytest.raises(ValueError):
        read_json("9" * 5000)


class Colour(enum.StrEnum):
    RED = "red"


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        ({1}, [1]),
        (Fraction(1, 3), "1/3"),
        (Decimal("1.50"), "1.50"),
        (b"a\xff", "a\ufffd"),
        ((1, (2,)), [1, [2]]),
        ({1: None, (2, 3): True}, {"1": None, "[2, 3]": True}),
        pytest.param(2**20000, "a whole number of about 6020 digits", id="huge"),
        ("\ud800", "\ufffd"),
        (Colour.RED, "red"),
        (1 + 2j, "(1+2j)"),
        (Rude(), "<Rude>"),
    ],
)
def test_anything_has_a_written_form(value, expected) -> None:
    assert plain(value) == expected
    assert json.loads(write_json({"it": value}))["it"] == expected


def test_what_holds_itself_ends() -> None:
    loop: list = []
    loop.append(loop)
    assert "nested too deeply" in write_json(loop)


class RudeNumber(int):
    def bit_length(self) -> int:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_written_takes_nothing_else_along() -> None:
    released = memoryview(b"a")
    released.release()
    record = {"id": "7", "arguments": {"x": RudeNumber(4), "y": released, "z": math.nan, "rude": Rude()}}
    arguments = {"x": "<RudeNumber>", "y": "<memoryview>", "z": "nan", "rude": "<Rude>"}
    assert json.loads(write_json(record)) == {"id": "7", "arguments": arguments}


def test_a_tree_whose_children_know_their_parent_is_written_once() -> None:
    tree: dict = {"children": []}
    for name in "abc":
        tree["children"].append({"name": name, "parent": tree, "siblings": tree["children"]})
    assert len(write_json(tree)) < 1000
    loop: list = []
    loop.extend([loop, loop])
    assert write_json(loop) == '["... (nested too deeply)","... (nested too deeply)"]'


def test_ordinary_records_are_written_as_ever() -> None:
    record = {"a": [1, 2.5, "ü\U0001f600", None, True], "b": {"c": -0.0}}
    assert json.loads(write_json(record)) == record
    assert json.loads(write_json(record, ensure_ascii=False)) == record


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(json_values)
def test_written_and_read_again(value) -> None:
    text = write_json(value)
    text.encode("ascii")
    assert json.loads(text) == plain(value)
    write_json(value, ensure_ascii=False).encode()


@given(st.text(st.characters()) | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_text_can_be_encoded_afterwards(text: str) -> None:
    clean = clean_text(text)
    clean.encode()
    assert clean == text or any("\ud800" <= char <= "\udfff" for char in text)


@pytest.mark.parametrize(
    ("value", "whether"),
    [
        ({"type": "text", "text": "a"}, True),
        ({"type": "image_url", "image_url": {"url": "data:"}}, True),
        ({"type": "text"}, False),
        ({"type": "theorem", "name": "Fermat"}, False),
        ({"type": 3, "text": "a"}, False),
        ({"type": "image"}, False),
        ("text", False),
    ],
)
def test_content_parts_are_known_and_complete(value, whether: bool) -> None:
    assert is_content_part(value) is whether


@pytest.mark.parametrize(
    "text", ['"' * 1_000_000, "[" * 1_000_000, '{"a":' * 200_000, "\\ud800" * 170_000, "\ud800" * 1_000_000]
)
def test_a_megabyte_is_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    for read in (clean_text, read_json):
        with contextlib.suppress(ValueError):
            read(text)
    assert time.process_time() - started < 1.0


@pytest.mark.slow
def test_what_is_shared_at_every_level_ends() -> None:
    shared: list = [0]
    for _ in range(40):  # written out it has 2 ** 40 values
        shared = [shared, shared]
    started = time.process_time()
    text = write_json(shared)
    assert time.process_time() - started < 30.0
    assert "more was left out" in text
    json.loads(text)


def test_a_pair_of_surrogates_is_no_reason_to_write_twice() -> None:
    from agentrl_envs.plain import _LONE

    assert not _LONE.search(json.dumps("a \U0001f600 b \U0001f600\U0001f601"))
    for half in ("\ud83d", "\ude00", "\ude00\ud83d", "\ud83d\ud83d\ude00"):
        assert _LONE.search(json.dumps(half))
