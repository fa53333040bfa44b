"""Arguments as models write them, against the hints."""

import enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl_envs.tools.schema import BadValue, coerce, schema_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


GOOD = [
    ("3", int, 3), (3.0, int, 3), (3, float, 3.0), ("2.5", float, 2.5), (3, str, "3"), ("x", str, "x"),
    (True, bool, True),
    ("false", bool, False), (None, int | None, None), ("3", int | str, "3"), (3, int | str, 3),
    ("[1, 2]", list[int], [1, 2]),
    (["1", 2], list[int], [1, 2]), ('{"a": 1}', dict[str, int], {"a": 1}),
    ([1, "b"], tuple[int, str], (1, "b")),
    ([1, 1], set[int], {1}), ("a", Literal["a", "b"], "a"), ("1", Literal[1, 2], 1),
    ("red", Colour, Colour.RED),
    ({"x": 1}, Any, {"x": 1}), ("4", Annotated[int, "a number"], 4), ([{"a": 1}], list, [{"a": 1}]),
]  # fmt: skip
BAD = [
    ("3.5", int, "expected an integer"), (3.5, int, "expected an integer"),
    (True, int, "expected an integer"),
    ([1], str, "expected a string"), ("nan", float, "expected a finite number"),
    ("yes", bool, "expected true or false"),
    ("c", Literal["a", "b"], "expected one of 'a', 'b'"), ("[1, ", list[int], "expected a list"),
    ([1, "x"], list[int], "item 1"),
    ([1], tuple[int, int], "expected 2 items, got 1"), ({"a": "x"}, dict[str, int], "key 'a'"),
    ("x", int | None, "integer or null"),
    ("9" * 500, int, "expected an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint", "wanted"), GOOD)
def test_what_can_be_read_is(value: object, hint: Any, wanted: object):
    got = coerce(value, hint)
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(("value", "hint", "words"), BAD)
def test_what_cannot_be_read_is_refused_in_words(value: object, hint: Any, words: str):
    with pytest.raises(BadValue, match=words):
        coerce(value, hint)


def test_schemas():
    assert schema_of(list[int]) == {"type": "array", "items": {"type": "integer"}}
    assert schema_of(dict[str, float]) == {"type": "object", "additionalProperties": {"type": "number"}}
    assert schema_of(Literal["a", 1]) == {"enum": ["a", 1]}
    assert schema_of(Colour) == {"enum": ["red", "blue"]}
    assert schema_of(Annotated[int, "how many"]) == {"type": "integer", "description": "how many"}
    assert schema_of(tuple[int, str])["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    with pytest.raises(TypeError, match="no JSON form"):
        schema_of(complex)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(
    JSON,
    st.sampled_from([int, float, str, bool, list[int], dict[str, int], int | None, tuple[int, int], Colour]),
)
def test_any_json_value_is_coerced_or_refused(value: object, hint: Any):
    try:
        got = coerce(value, hint)
    except BadValue:
        return
    if hint in (int, float, str, bool):
        assert type(got) is hint
