"""Settings from one TOML file and dotted flags, with errors that say where and what would be right.

`load_settings("run.toml", ["--learner.learning_rate=1e-5"])`. Every mistake is reported, all at
once: file, line, value, what was expected, and the nearest known key. `load` does the same for the tree of
any command. Neither opens a model or data.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from agentrl.config import bundled, presets, registry
from agentrl.config.conversion import BAD, Converter, FlagText, Place
from agentrl.config.ranges import part_of
from agentrl.config.settings import Settings
from agentrl.config.tree import all_keys, declaration, hint_at, hints_of, open_field, sections_of
from agentrl.errors import ConfigError

T = TypeVar("T")
Table = dict[str, Any]


def load_settings(
    path: Path | None = None, flags: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Settings:
    """Settings of a run: defaults, then a preset that is named, then the file, then flags, then values.

    Args:
        path: a TOML file; None takes defaults only.
        flags: `--section.key=value`, or `--section.key` and `value` as two items.
        values: dotted names with values as Python has them.

    Raises:
        ConfigError: with every mistake found.
    """
    return load(Settings, path, flags, values, below=presets.below)


def load(
    root: type[T],
    path: Path | None = None,
    flags: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    *,
    below: Callable[[Table], Table] | None = None,
) -> T:
    """A tree of settings: defaults, then what stands below, then the file, then flags, then values.

    Args:
        root: the dataclass of the tree.
        path: a TOML file; None takes none.
        flags: `--section.key=value`, or `--section.key` and `value` as two items.
        values: dotted names with values as Python has them.
        below: from what file and flags say to a table of what holds where they say nothing.

    Raises:
        ConfigError: with every mistake found.
    """
    table, places = ({}, {}) if path is None else read(path)
    source = Place("settings" if path is None else str(path))
    converter = Converter(root, places)
    _put_all(converter, root, flags, values or {}, table, places)
    if path is not None:
        _find_files(root, table, path.parent)
    bundled.put_model(table)
    if below is not None:
        _merge(table, below(table))
    settings = converter.build(root, table, "", source)
    converter.check_rules(settings)
    converter.raise_if_any()
    return settings


def said(flags: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> frozenset[str]:
    """Dotted names of the settings of a run that flags and values say, and those of a preset that they name.

    Both are those of a `load_settings` that did not raise.
    """
    table, places = Table(), dict[str, Place]()
    _put_all(Converter(Settings, places), Settings, flags, values or {}, table, places)
    preset = presets.below(table)
    return frozenset({*places, *(f"{section}.{key}" for section in preset for key in preset[section])})


def _put_all(
    converter: Converter,
    root: type,
    flags: Sequence[str],
    values: Mapping[str, Any],
    table: Table,
    places: dict[str, Place],
) -> None:
    """Put what flags say, and then values, into a table."""
    _put_flags(converter, root, flags, table, places)
    for key, value in values.items():
        places[key] = Place(key)
        _put(converter, key, value, places[key], table)


def changed(settings: T, values: Mapping[str, Any], places: Mapping[str, Place] | None = None) -> T:
    """A tree with some settings changed.

    Args:
        settings: the tree.
        values: by dotted name, as TOML has them.
        places: where each was written.

    Raises:
        ConfigError: with every mistake found.
    """
    root, places = type(settings), places or {}
    converter = Converter(root, places)
    for name, value in sorted(values.items()):
        hint, place = hint_at(root, name), places.get(name, Place("settings"))
        if hint is None:
            converter.add(place, converter.unknown(name, all_keys(root)), name)
        elif (converted := converter.convert(hint, value, name, place)) is not BAD:
            settings = _replaced(settings, name.split("."), converted)
    converter.check_rules(settings)
    converter.raise_if_any()
    return settings


def _replaced(here: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    name, *rest = path
    if isinstance(here, Mapping):
        return {**here, name: _replaced(here.get(name), rest, value)}
    return dataclasses.replace(here, **{name: _replaced(getattr(here, name), rest, value)})


def _merge(table: Table, below: Mapping[str, Any]) -> None:
    """Put into a table what it does not say."""
    for key, value in below.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table.setdefault(key, value)


def _find_files(root: type, table: Table, folder: Path) -> None:
    """Let the file of a part, or of an environment, stand beside the settings file."""
    environments = table.get("env")
    for one in environments if isinstance(environments, list) else [environments]:
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            one["name"] = type(one["name"])(registry.beside(one["name"], folder))
    for section, kind in sections_of(root).items():
        given = table.get(section)
        if not isinstance(given, dict):
            continue
        for name, hint in hints_of(kind).items():
            value, item = given.get(name), (typing.get_args(hint) or (hint,))[0]
            if isinstance(value, str) and (part_of(hint) or part_of(item)) is not None:
                given[name] = type(value)(registry.beside(value, folder))
            elif isinstance(value, list) and part_of(item) is not None:
                given[name] = [
                    type(one)(registry.beside(one, folder)) if isinstance(one, str) else one for one in value
                ]


# ---- files -------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[Table, dict[str, Place]]:
    """The tables of a TOML file, and where each key stands.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the settings file {path}: it is not UTF-8 ({error})") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return table, {key: Place(str(path), line) for key, line in _key_lines(text).items()}


_HEADER = re.compile(r"^\s*\[(\[)?\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""^\s*([A-Za-z0-9_.\-]+|"[^"]+")\s*=""")


def _key_lines(text: str) -> dict[str, int]:
    """Line of each key and table, by dotted name; items of `[[env]]` are `env.0`, `env.1`, ..."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            prefix = header[2].replace(" ", "")
            if header[1]:
                counts[prefix] = counts.get(prefix, -1) + 1
                prefix = f"{prefix}.{counts[prefix]}"
            elif prefix.partition(".")[0] in counts:
                # A sub-table such as [env.settings] belongs to the newest [[env]].
                first, _, rest = prefix.partition(".")
                prefix = f"{first}.{counts[first]}.{rest}"
            lines.setdefault(prefix, number)
        elif key := _KEY.match(line):
            name = key[1].strip('"')
            lines.setdefault(f"{prefix}.{name}" if prefix else name, number)
    return lines


# ---- flags -------------------------------------------------------------------------------------------------


def _put_flags(
    converter: Converter,
    root: type,
    flags: Sequence[str],
    table: Table,
    places: dict[str, Place],
) -> None:
    """Put what flags say into a table; a list or table that is given again grows."""
    rest, begun = list(flags), set[str]()
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            converter.add(Place(repr(flag)), "unexpected argument; settings are given as --section.key=value")
            continue
        name, equals, text = flag[2:].partition("=")
        key, place = name.replace("-", "_"), Place(f"--{name}")
        if not equals and not rest:
            known = key in all_keys(root)
            converter.add(
                place,
                f"needs a value, for example --{name}=VALUE" if known else converter.unknown(key, ()),
            )
            continue
        hint = hint_at(root, key)
        for full, item in _items(converter, hint, key, FlagText(text if equals else rest.pop(0)), place):
            _put(converter, full, item, place, table, grows=full in begun)
            places[full] = place
        if typing.get_origin(hint) is tuple:
            begun.add(key)


def _items(
    converter: Converter, hint: Any, key: str, text: FlagText, place: Place
) -> list[tuple[str, FlagText]]:
    """A flag of a table taken apart: `--env.settings turns=3` is `--env.settings.turns=3`."""
    if typing.get_origin(hint) is not dict or text.lstrip().startswith("{"):
        return [(key, text)]
    found: list[tuple[str, FlagText]] = []
    for pair in text.split(",") if typing.get_args(hint)[1] is str else [text]:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            converter.add(place, f"{pair!r}: want NAME=VALUE", key)
            continue
        found.append((f"{key}.{name.strip()}", FlagText(value.strip())))
    return found


def _put(
    converter: Converter, key: str, value: Any, place: Place, table: Table, *, grows: bool = False
) -> None:
    *path, last = key.split(".")
    here: Any = table
    for part in path:
        here = here.setdefault(part, {})
        if isinstance(here, list) and len(here) == 1:
            here = here[0]
        if not isinstance(here, dict):
            converter.add(place, f"{part!r} is not a section; several [[env]] are set in the file")
            return
    if grows:
        before = here[last]
        here[last] = [*(before if isinstance(before, list) else [before]), value]
    else:
        here[last] = value


# ---- writing -----------------------------------------------------------------------------------------------


def to_toml(settings: Any) -> str:
    """A resolved tree as TOML; `load` reads it back to an equal one."""
    parts: list[str] = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple):
            parts += [f"[[{field.name}]]\n{_lines(one)}" for one in value]
        else:
            parts.append(f"[{field.name}]\n{_lines(value)}{_own_lines(value)}")
    return "\n".join(parts)


def _own_lines(section: Any) -> str:
    opened = open_field(type(section))
    if opened is None:
        return ""
    setting, named = opened
    values = declaration(named, getattr(section, setting)).defaults() | section.own
    return "".join(f"{key} = {literal(value)}\n" for key, value in values.items())


def _lines(section: Any) -> str:
    values = {field.name: getattr(section, field.name) for field in fields(section) if field.name != "own"}
    return "".join(f"{name} = {literal(value)}\n" for name, value in values.items() if value is not None)


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if dataclasses.is_dataclass(value):
        return "{" + ", ".join(f"{f.name} = {literal(getattr(value, f.name))}" for f in fields(value)) + "}"
    if isinstance(value, dict):
        names = (key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in value)
        return (
            "{"
            + ", ".join(f"{name} = {literal(v)}" for name, v in zip(names, value.values(), strict=True))
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
