"""Tools that a JSON schema describes: references, unions, recursion, loose arguments."""

from typing import Any

import pytest

from agentrl_envs import Env, EnvError, ToolCall
from agentrl_envs.tools import schema_tool, tool_name, tools_of

TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "below": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
        },
        "Colour": {"enum": ["red", "green"]},
    },
    "type": "object",
    "properties": {
        "tree": {"$ref": "#/$defs/Node"},
        "colour": {"$ref": "#/$defs/Colour", "description": "of the tree"},
        "size": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "tags": {"type": ["array", "string"], "items": {"type": "string"}},
    },
    "required": ["tree", "colour"],
}


def env_of(schema: dict[str, Any]) -> type[Env]:
    async def plant(self: Any, **arguments: Any) -> Any:
        return arguments

    return type("Garden", (Env,), {"tool_plant": schema_tool("plant", "Plants.", schema, plant)})


def test_references_are_written_out_and_recursion_ends():
    (spec,) = env_of(TREE).tool_specs()
    properties = spec.parameters["properties"]
    assert properties["colour"] == {"enum": ["red", "green"], "description": "of the tree"}
    inner = properties["tree"]["properties"]["below"]["items"]
    assert inner == {"type": "object", "description": "as the one that it stands in"}
    assert "$ref" not in str(spec.parameters)
    assert "$defs" not in spec.parameters
    assert spec.parameters["required"] == ["tree", "colour"]


async def test_arguments_are_read_by_the_schema():
    env = env_of(TREE)()
    good = {"tree": '{"name": "oak"}', "colour": "red", "size": "3", "tags": "a"}
    bad = {"tree": {}, "colour": "blue", "sizes": 1}
    done, refused = await env.call_tools([ToolCall("1", "plant", good), ToolCall("2", "plant", bad)])
    assert done.text == '{"tree": {"name": "oak"}, "colour": "red", "size": 3, "tags": "a"}'
    assert refused.status == "bad_arguments"
    assert "argument 'colour': expected one of 'red', 'green'" in refused.text
    assert "unknown argument 'sizes' (did you mean 'size'?)" in refused.text
    await env.aclose()


def test_all_of_is_one_object_and_open_objects_take_more():
    schema = {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "number"}, "definitions": {}}},
        ],
        "additionalProperties": True,
    }
    bound = tools_of(env_of(schema), 30.0)["plant"]
    assert (bound.hints, bound.required) == ({"a": int, "b": float, "definitions": Any}, ("a",))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (
            {"type": "object", "properties": {"a": {"$ref": "https://x.org/a.json"}}},
            "refers to 'https://x.org/a.json', outside",
        ),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/B"}}},
            "refers to '#/\\$defs/B', which is not in it",
        ),
        ({"type": "string"}, "must be that of an object"),
        (
            {"type": "object", "properties": {str(n): {"type": "string"} for n in range(2000)}},
            "has more than 2,000 parts",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_sentence(schema: dict[str, Any], said: str):
    with pytest.raises(EnvError, match=f"tool 'plant': its schema {said}"):
        env_of(schema).tool_specs()


def test_names_that_renderers_cannot_write():
    assert [tool_name(name) for name in ("fs.read/file", "1st", "", "a" * 70)] == [
        "fs_read_file",
        "_1st",
        "tool",
        "a" * 64,
    ]
