"""What a tree of settings declares: its sections, types and texts of their fields, the parts that they name.

A tree is a dataclass whose fields are sections, and a section is a dataclass whose fields are settings; a
tuple of dataclasses is a section that may be written several times. A section that names a part has a field
`own` for the settings of that part.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal

from agentrl.config import registry
from agentrl.config.ranges import PartOf, part_of, range_of


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Types of the fields of a dataclass, ranges and families of parts included."""
    return typing.get_type_hints(kind, include_extras=True)


@cache
def texts_of(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass; its docstring under the empty name."""
    texts: dict[str, str] = {}
    for one in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        node = registry.parsed(textwrap.dedent(inspect.getsource(one)), one.__name__).body[0]
        assert isinstance(node, ast.ClassDef)
        texts |= {"": ast.get_docstring(node) or "", **registry.field_texts(node)}
    return texts


def sections_of(root: type) -> dict[str, type]:
    """The dataclass of each section; of one that may be written several times, that of one of them."""
    return {name: _dataclass_in(hint) for name, hint in hints_of(root).items()}


def _dataclass_in(hint: Any) -> type:
    return hint if is_dataclass(hint) else typing.get_args(hint)[0]


def names_of(kind: type) -> list[str]:
    """Names of a section's settings, without those of the part it names."""
    return [field.name for field in fields(kind) if field.name != "own"]


def plain(hint: Any) -> Any:
    """The type below its range, or below what its text names."""
    return typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def hint_at(root: type, key: str) -> Any:
    """The type of a setting by its dotted name; None where the tree does not know it."""
    hint: Any = root
    for name in key.split("."):
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            continue
        if typing.get_origin(hint) is tuple and is_dataclass(typing.get_args(hint)[0]):
            hint = typing.get_args(hint)[0]
        hint = hints_of(hint).get(name) if is_dataclass(hint) else None
    return hint


def family_of(root: type, key: str) -> str | None:
    """The family of the parts that a setting names, alone or in a list; None where it names none."""
    hint = hint_at(root, key)
    part = part_of(typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint)
    return None if part is None else part.family


def open_field(kind: type) -> tuple[str, PartOf] | None:
    """The setting that names the part whose own settings stand in a section; None where there is none."""
    hints = hints_of(kind)
    found = ((name, part_of(hint)) for name, hint in hints.items() if "own" in hints)
    return next(((name, part) for name, part in found if part is not None), None)


def declaration(named: PartOf, kind: str) -> registry.Declaration:
    """What a part says of itself; words such as `auto` have no settings."""
    if kind in named.also:
        return registry.Declaration(named.family, kind)
    return registry.declared(named.family, kind)


def own_hints(part: Any) -> dict[str, Any]:
    """Types of the settings of a part."""
    kind = part.settings if isinstance(part, registry.Declaration) else None
    return {} if kind is None else hints_of(kind)


def shipped(kind: type | None) -> list[registry.Declaration]:
    """The package's own parts whose settings may stand in a section."""
    opened = None if kind is None else open_field(kind)
    if opened is None:
        return []
    family = opened[1].family
    return [registry.declared(family, name) for name in registry.BUILT_IN[family]]


def all_keys(root: type) -> list[str]:
    """Dotted names of all settings."""
    keys: list[str] = []
    for section, kind in sections_of(root).items():
        names = [*names_of(kind), *(name for part in shipped(kind) for name in own_hints(part))]
        keys += [f"{section}.{name}" for name in names]
    return list(dict.fromkeys(keys))


def parts_of(settings: Any) -> list[registry.Declaration]:
    """What the parts that a tree names in files say of themselves."""
    found: list[registry.Declaration] = []
    for field in fields(settings):
        section = getattr(settings, field.name)
        for name, hint in {} if isinstance(section, tuple) else hints_of(type(section)).items():
            value, several = getattr(section, name), typing.get_origin(hint) is tuple
            part = part_of(typing.get_args(hint)[0] if several else hint)
            if part is not None:
                named = value if several else (value,)
                found += [registry.declared(part.family, one) for one in named if one not in part.also]
    return [part for part in found if part.kind not in registry.BUILT_IN[part.family]]


def describe_type(hint: Any) -> str:
    """A type as `docs/configuration.md` shows it."""
    if (within := range_of(hint)) is not None:
        return f"{describe_type(plain(hint))}, {within}"
    if (part := part_of(hint)) is not None:
        words = [f'`"{word}"`' for word in (*part.also, *registry.BUILT_IN[part.family], "file.py:Name")]
        return " or ".join(words)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{argument!r}`".replace("'", '"') for argument in arguments)
    if origin is tuple:
        return f"list of {describe_type(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return describe_type(arguments[0])
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), "table"
    )
