"""Tables, as they are read from TOML and flags, to dataclasses; every mistake is kept with its place."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from agentrl.config import registry
from agentrl.config.ranges import part_of, range_of
from agentrl.config.tree import (
    all_keys,
    declaration,
    hints_of,
    names_of,
    open_field,
    own_hints,
    plain,
    sections_of,
    shipped,
)
from agentrl.errors import ConfigError

BAD: Any = object()
"""Stands for a value that was wrong, and that has been told."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a line of a file, or a flag."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


class FlagText(str):
    """A flag's value as it was written; what it means depends on the setting."""


class Converter:
    """Makes a tree of settings.

    Args:
        root: the dataclass of the tree.
        places: where each value was written, by dotted name.
    """

    def __init__(self, root: type, places: Mapping[str, Place]) -> None:
        self._root, self._places = root, places
        self._texts: list[str] = []
        self._wrong: set[str] = set()
        """Settings that are known to be wrong; rules between settings leave them out."""

    def add(self, place: Place, text: str, name: str = "") -> Any:
        """Keep a mistake."""
        self._texts.append(f"{place}: {text}")
        self._wrong.add(name)
        return BAD

    def raise_if_any(self) -> None:
        """Tell all mistakes at once.

        Raises:
            ConfigError: there are some.
        """
        if self._texts:
            count = len(self._texts)
            head = "the settings have a mistake" if count == 1 else f"the settings have {count} mistakes"
            raise ConfigError(head + ":\n" + "\n".join(f"  {text}" for text in self._texts))

    def build(self, kind: type, table: Any, name: str, inside: Place) -> Any:
        """A section, or the whole tree, from a table."""
        place = self._places.get(name, inside)
        if not isinstance(table, dict):
            self.add(place, f"[{name}] must be a table, got {table!r}", name)
            return kind()
        hints, known, part = hints_of(kind), names_of(kind), self._declared(kind, table)
        own = own_hints(part)
        values: dict[str, Any] = {}
        for key, value in table.items():
            full = f"{name}.{key}" if name else key
            below = (at for written, at in self._places.items() if written.startswith(f"{full}."))
            where = self._places.get(full) or next(below, place)
            if key in known or key in own:
                values[key] = self.convert(hints.get(key) or own[key], value, full, where)
            elif part is not BAD:  # else nobody can say which settings there are
                self.add(where, self.unknown(full, [*known, *own]), full)
        values = {key: value for key, value in values.items() if value is not BAD}
        if isinstance(part, registry.Declaration):
            mine = {key: values.pop(key) for key in list(values) if key in own}
            for key in part.needed():
                if key not in table:
                    self.add(place, f"{part.family} {part.kind!r} needs {name}.{key}", f"{name}.{key}")
            # Defaults are left out, so that equal settings are equal however they were written.
            defaults = part.defaults()
            values["own"] = {key: value for key, value in mine.items() if value != defaults.get(key, BAD)}
        return kind(**values)

    def _declared(self, kind: type, table: Mapping[str, Any]) -> Any:
        """What the part that a section names says of itself; None where a section names none."""
        opened = open_field(kind)
        if opened is None:
            return None
        setting, named = opened
        try:
            part = declaration(named, str(table.get(setting, getattr(kind(), setting))))
        except ConfigError:  # told where the setting is read
            return BAD
        for taken in sorted(set(own_hints(part)) & set(names_of(kind))):
            place = self._places.get(f"{named.family}.{setting}", Place("settings"))
            self.add(place, f"{part} has a setting {taken!r}, which is one of [{named.family}] itself")
        return part

    def unknown(self, full: str, known: Sequence[str]) -> str:
        """What to say of a name that is no setting."""
        section, _, key = full.rpartition(".")
        owners = [part for part in shipped(sections_of(self._root).get(section)) if key in own_hints(part)]
        if owners:
            names = " or ".join(repr(one.kind) for one in owners)
            return f"{full!r} is a setting of the {owners[0].family} {names} only"
        everywhere = [name for name in all_keys(self._root) if name.rpartition(".")[2] == key]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        meant = [*everywhere, *(f"{section}.{name}" if section else name for name in near)]
        if meant:
            return f"unknown setting {full!r}; did you mean {meant[0]!r}?"
        return f"unknown setting {full!r}; known here: {', '.join(sorted(known))}"

    def convert(self, hint: Any, value: Any, name: str, place: Place) -> Any:
        """A value of a type; `BAD` where it is none, and that is kept."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if type(None) in arguments:
            return self.convert(arguments[0], value, name, place)
        if isinstance(value, FlagText):
            value = flag_value(value, hint)
        if is_dataclass(hint):
            return self.build(hint, value, name, place)
        if origin is tuple:
            return self._tuple(arguments, value, name, place)
        if origin is Literal:
            return self._literal(arguments, value, name, place)
        if origin is dict:
            if not isinstance(value, dict):
                return self.add(place, f"{name} must be a table, got {value!r}", name)
            found = {key: self._item(arguments[1], one, f"{name}.{key}", place) for key, one in value.items()}
            return BAD if BAD in found.values() else found
        return self._scalar(hint, value, name, place)

    def _item(self, hint: Any, value: Any, name: str, place: Place) -> Any:
        return self.convert(hint, value, name, self._places.get(name, place))

    def _literal(self, words: tuple[Any, ...], value: Any, name: str, place: Place) -> Any:
        if value in words:
            return value
        near = difflib.get_close_matches(str(value), words, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return self.add(place, f"{name} = {value!r} must be one of {', '.join(map(repr, words))}{hint}", name)

    def _tuple(self, arguments: tuple[Any, ...], value: Any, name: str, place: Place) -> Any:
        item, variable = arguments[0], len(arguments) == 2 and arguments[1] is Ellipsis
        if is_dataclass(item) and isinstance(value, dict):
            return (self.build(item, value, name, place),)
        if isinstance(value, str) and variable and plain(item) is str:
            value = [value]
        if not isinstance(value, list | tuple) or (not variable and len(value) != len(arguments)):
            want = "a list" if variable else f"a list of {len(arguments)}"
            return self.add(place, f"{name} must be {want}, got {value!r}", name)
        kinds = [item] * len(value) if variable else list(arguments)
        found = [
            self._item(kind, part, f"{name}.{number}", place)
            for number, (kind, part) in enumerate(zip(kinds, value, strict=True))
        ]
        return BAD if BAD in found else tuple(found)

    def _scalar(self, hint: Any, value: Any, name: str, place: Place) -> Any:
        kind, within, part = plain(hint), range_of(hint), part_of(hint)
        if kind is Any:
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1023 else math.inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
            quotes = f": write {json.dumps(str(value))} with quotes" if kind is str else ""
            return self.add(place, f"{name} = {value!r} must be {kinds.get(kind, kind)}{quotes}", name)
        if within is not None and value not in within:
            return self.add(place, f"{name} = {value!r} must be {within.wanted(value)}", name)
        if part is not None and value not in part.also:
            try:
                registry.declared(part.family, str(value))
            except ConfigError as error:
                return self.add(place, f"{name} = {value!r}: {error}", name)
        return value

    def check_rules(self, settings: Any) -> None:
        """Keep every broken rule between settings, at the place of the first of them that was written."""
        for names, text in broken_rules(settings):
            if self._wrong.isdisjoint(names):
                written = (self._places[name] for name in names if name in self._places)
                self.add(next(written, Place("settings")), text)


def broken_rules(settings: Any) -> list[tuple[tuple[str, ...], str]]:
    """(dotted names concerned, what is wrong) of every rule of a tree and its sections that does not hold."""
    found: list[tuple[tuple[str, ...], str]] = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        for section in value if isinstance(value, tuple) else (value,):  # several [[env]]
            for names, text in section.rules() if hasattr(section, "rules") else ():
                found.append((tuple(f"{field.name}.{name}" for name in names), text))
    return [*found, *(settings.rules() if hasattr(settings, "rules") else ())]


def flag_value(text: str, hint: Any) -> Any:
    """What a flag's text means for a setting of type `hint`: text as it stands, else TOML, else JSON.

    Settings of environments, whose types are known later, take text too, save for lists and tables.
    """
    hint = plain(hint)
    is_text = hint is str or typing.get_origin(hint) is Literal
    arguments = typing.get_args(hint)
    may_be_text = hint is Any or (arguments[1:] == (...,) and plain(arguments[0]) is str)
    if is_text or (may_be_text and not text.lstrip().startswith(("[", "{"))):
        return str(text)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return json.loads(text)
    except ValueError:
        return str(text)
