"""Settings from one TOML file and dotted flags, with errors that say where and what would be right.

`load_settings("run.toml", ["--learner.learning_rate=1e-5"])`. Every mistake is reported, all at
once: file, line, value, what was expected, and the nearest known key. It knows the shape of the
settings and a few rules between them; it opens no model and no data.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from agentrl.config import registry
from agentrl.config import settings as sections
from agentrl.config.ranges import PartOf, out_of_range, part_of, range_of
from agentrl.config.settings import EnvSettings, SandboxSettings, Settings
from agentrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a line of a file, or a flag."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


class _Errors:
    """Collects mistakes, so that all of them are told at once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.wrong: set[str] = set()
        """Settings that are known to be wrong; rules between settings leave them out."""

    def add(self, place: Place, text: str, name: str = "") -> None:
        self.texts.append(f"{place}: {text}")
        self.wrong.add(name)

    def raise_if_any(self) -> None:
        if self.texts:
            count = len(self.texts)
            head = "the settings have a mistake" if count == 1 else f"the settings have {count} mistakes"
            raise ConfigError(head + ":\n" + "\n".join(f"  {text}" for text in self.texts))


class _FlagText(str):
    """A flag's value as it was written; what it means depends on the setting."""


def load_settings(path: Path | None = None, flags: Sequence[str] = ()) -> Settings:
    """Settings of a run: defaults, then the file, then flags.

    Args:
        path: a TOML file; None takes defaults only.
        flags: `--section.key=value`, or `--section.key` and `value` as two items.

    Raises:
        ConfigError: with every mistake found.
    """
    errors = _Errors()
    table, lines = ({}, {}) if path is None else _read(path)
    source = "" if path is None else str(path)
    places = {key: Place(source, line) for key, line in lines.items()}
    for key, text, flag in _split_flags(flags, errors):
        _put(table, key, _FlagText(text), Place(flag), places, errors)
    if path is not None:
        _find_files(table, path.parent)
    settings = _build(Settings, table, "", places, Place(source or "settings"), errors)
    _check_rules(settings, places, errors)
    errors.raise_if_any()
    return settings


def _find_files(table: Mapping[str, Any], folder: Path) -> None:
    """Let a part's file stand beside the settings file."""
    for section in fields(Settings):
        given = table.get(section.name)
        if not isinstance(given, dict):
            continue
        for name, hint in _hints(section_type(section.name)).items():
            value, item = given.get(name), (typing.get_args(hint) or (hint,))[0]
            if isinstance(value, str) and part_of(hint) is not None:
                given[name] = type(value)(registry.beside(value, folder))
            elif isinstance(value, list) and part_of(item) is not None:
                given[name] = [registry.beside(str(one), folder) for one in value]


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, dict(vars(sections)), include_extras=True)


def _open_field(section: str) -> tuple[str, PartOf] | None:
    """The setting that names the part whose own settings stand in a section; None where there is none."""
    if section not in {field.name for field in fields(Settings)}:
        return None
    kind = section_type(section)
    if "own" not in {field.name for field in fields(kind)}:
        return None
    for name, hint in _hints(kind).items():
        if (part := part_of(hint)) is not None:
            return name, part
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
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
    return table, _key_lines(text)


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


def _split_flags(flags: Sequence[str], errors: _Errors) -> list[tuple[str, str, str]]:
    """(key, value, flag as written) of each dotted flag."""
    found: list[tuple[str, str, str]] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            errors.add(Place(repr(flag)), "unexpected argument; settings are given as --section.key=value")
            continue
        name, equals, value = flag[2:].partition("=")
        key = name.replace("-", "_")
        if not equals and not rest:
            known = key in all_keys()
            wanted = f"needs a value, for example --{name}=VALUE" if known else _unknown(key, key, ())
            errors.add(Place(f"--{name}"), wanted)
            continue
        found.append((key, value if equals else rest.pop(0), f"--{name}"))
    return found


def _flag_value(text: str, hint: Any) -> Any:
    """What a flag's text means for a setting of type `hint`: text as it stands, else TOML.

    Settings of environments, whose types are known later, take text too, save for lists and tables.
    """
    hint = _plain(hint)
    is_text = hint is str or typing.get_origin(hint) is Literal
    arguments = typing.get_args(hint)
    may_be_text = hint is Any or (arguments[1:] == (...,) and _plain(arguments[0]) is str)
    if is_text or (may_be_text and not text.lstrip().startswith(("[", "{"))):
        return str(text)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return str(text)


def _plain(hint: Any) -> Any:
    """The type below its range, or below what its text names."""
    return typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _put(
    table: dict[str, Any], key: str, value: Any, place: Place, places: dict[str, Place], errors: _Errors
) -> None:
    *path, last = key.split(".")
    here: Any = table
    for part in path:
        here = here.setdefault(part, {})
        if isinstance(here, list) and len(here) == 1:
            here = here[0]
        if not isinstance(here, dict):
            errors.add(place, f"{part!r} is not a section; several [[env]] are set in the file")
            return
    here[last] = value
    places[key] = place


def _build(
    kind: type, table: Any, name: str, places: Mapping[str, Place], inside: Place, errors: _Errors
) -> Any:
    """Make a section from a table, noting every mistake."""
    place = places.get(name, inside)
    if not isinstance(table, dict):
        errors.add(place, f"[{name}] must be a table, got {table!r}", name)
        return kind()
    hints = _hints(kind)
    known = [field.name for field in fields(kind) if field.name != "own"]
    part = _declared(kind, table, name)
    own = _own_hints(part)
    values: dict[str, Any] = {}
    for key, value in table.items():
        full = f"{name}.{key}" if name else key
        below = (at for written, at in places.items() if written.startswith(f"{full}."))
        where = places.get(full) or next(below, place)
        if key not in known and key not in own:
            if part is not _BAD:  # else nobody can say which settings there are
                errors.add(where, _unknown(full, key, [*known, *own]), full)
            continue
        values[key] = _convert(hints.get(key) or own[key], value, full, places, where, errors)
    values = {key: value for key, value in values.items() if value is not _BAD}
    if isinstance(part, registry.Declaration):
        mine = {key: values.pop(key) for key in list(values) if key in own}
        for key in part.needed():
            if key not in table:
                errors.add(place, f"{part.family} {part.kind!r} needs {name}.{key}", f"{name}.{key}")
        # Defaults are left out, so that equal settings are equal however they were written.
        defaults = part.defaults()
        values["own"] = {key: value for key, value in mine.items() if value != defaults.get(key, _BAD)}
    return kind(**values)


def _declared(kind: type, table: Any, name: str) -> Any:
    """What the part that a section names says of itself; None where a section names none."""
    opened = _open_field(name)
    if opened is None:
        return None
    setting, named = opened
    chosen = str(table.get(setting, getattr(kind(), setting)))
    try:
        return _declaration(named, chosen)
    except ConfigError:  # told where the setting is read
        return _BAD


def _declaration(named: PartOf, kind: str) -> registry.Declaration:
    """What a part says of itself; words such as `auto` have no settings."""
    if kind in named.also:
        return registry.Declaration(named.family, kind)
    return registry.declared(named.family, kind)


def _own_hints(part: Any) -> dict[str, Any]:
    """Types of the settings of a part."""
    kind = part.settings if isinstance(part, registry.Declaration) else None
    return {} if kind is None else typing.get_type_hints(kind, include_extras=True)


_BAD = object()


def _unknown(full: str, key: str, known: Sequence[str]) -> str:
    section, _, setting = full.rpartition(".")
    owners = [part for part in shipped(section) if setting in _own_hints(part)]
    if owners:
        names = " or ".join(repr(one.kind) for one in owners)
        return f"{full!r} is a setting of the {owners[0].family} {names} only"
    everywhere = [name for name in all_keys() if name.rpartition(".")[2] == key]
    if everywhere:
        return f"unknown setting {full!r}; did you mean {everywhere[0]!r}?"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        prefix = full.rpartition(".")[0]
        return f"unknown setting {full!r}; did you mean {(prefix + '.' if prefix else '') + near[0]!r}?"
    return f"unknown setting {full!r}; known here: {', '.join(sorted(known))}"


def all_keys() -> list[str]:
    """Dotted names of all settings."""
    keys: list[str] = []
    for section in fields(Settings):
        kind = section_type(section.name)
        keys += [f"{section.name}.{field.name}" for field in fields(kind) if field.name != "own"]
        for part in shipped(section.name):
            keys += [f"{section.name}.{key}" for key in _own_hints(part)]
    return list(dict.fromkeys(keys))


def shipped(section: str) -> list[registry.Declaration]:
    """The package's own parts whose settings may stand in a section."""
    opened = _open_field(section)
    if opened is None:
        return []
    family = opened[1].family
    return [registry.declared(family, kind) for kind in registry.BUILT_IN[family]]


def parts_of(settings: Settings) -> list[registry.Declaration]:
    """What the parts that a run names in files say of themselves."""
    found: list[registry.Declaration] = []
    for section in fields(Settings):
        if section.name == "env":
            continue
        value = getattr(settings, section.name)
        for name, hint in _hints(type(value)).items():
            one = part_of(hint)
            item = part_of(next(iter(typing.get_args(hint)), None))
            if one is not None and getattr(value, name) not in one.also:
                found.append(registry.declared(one.family, getattr(value, name)))
            elif item is not None and typing.get_origin(hint) is tuple:
                found += [registry.declared(item.family, kind) for kind in getattr(value, name)]
    return [part for part in found if part.kind not in registry.BUILT_IN[part.family]]


def section_type(name: str) -> type:
    """The dataclass of a section; `env` gives that of one environment."""
    hint = typing.get_type_hints(Settings, dict(vars(sections)))[name]
    return hint if is_dataclass(hint) else EnvSettings  # pyright: ignore[reportReturnType]


def _convert(
    hint: Any, value: Any, name: str, places: Mapping[str, Place], place: Place, errors: _Errors
) -> Any:
    if isinstance(value, _FlagText):
        value = _flag_value(value, hint)
    if is_dataclass(hint):
        return _build(hint, value, name, places, place, errors)  # pyright: ignore[reportArgumentType]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _convert_tuple(arguments, value, name, places, place, errors)
    if origin is Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), arguments, n=1)
        hint_text = f"; did you mean {near[0]!r}?" if near else ""
        wanted = f"must be one of {', '.join(map(repr, arguments))}{hint_text}"
        errors.add(place, f"{name} = {value!r} {wanted}", name)
        return _BAD
    if origin is dict:
        return _convert_table(arguments[1], value, name, places, place, errors)
    return _convert_scalar(hint, value, name, place, errors)


def _convert_table(
    item: Any, value: Any, name: str, places: Mapping[str, Place], place: Place, errors: _Errors
) -> Any:
    if not isinstance(value, dict):
        errors.add(place, f"{name} must be a table, got {value!r}", name)
        return _BAD
    converted = {
        key: _convert(item, part, f"{name}.{key}", places, places.get(f"{name}.{key}", place), errors)
        for key, part in value.items()
    }
    return _BAD if _BAD in converted.values() else converted


def _convert_tuple(
    arguments: tuple[Any, ...],
    value: Any,
    name: str,
    places: Mapping[str, Place],
    place: Place,
    errors: _Errors,
) -> Any:
    item, variable = arguments[0], len(arguments) == 2 and arguments[1] is Ellipsis
    if is_dataclass(item) and isinstance(value, dict):
        return (_build(item, value, name, places, place, errors),)  # pyright: ignore[reportArgumentType]
    if isinstance(value, str) and variable and _plain(item) is str:
        value = [value]
    if not isinstance(value, list | tuple) or (not variable and len(value) != len(arguments)):
        want = "a list" if variable else f"a list of {len(arguments)}"
        errors.add(place, f"{name} must be {want}, got {value!r}", name)
        return _BAD
    kinds = [item] * len(value) if variable else list(arguments)
    converted = [
        _convert(kind, part, f"{name}.{number}", places, places.get(f"{name}.{number}", place), errors)
        for number, (kind, part) in enumerate(zip(kinds, value, strict=True))
    ]
    return _BAD if _BAD in converted else tuple(converted)


def _convert_scalar(hint: Any, value: Any, name: str, place: Place, errors: _Errors) -> Any:
    kind, within = _plain(hint), range_of(hint)
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        quotes = f": write {json.dumps(str(value))} with quotes" if kind is str else ""
        errors.add(place, f"{name} = {value!r} must be {kinds.get(kind, kind)}{quotes}", name)
        return _BAD
    if within is not None and value not in within:
        errors.add(place, f"{name} = {value!r} must be {within.wanted(value)}", name)
        return _BAD
    if (part := part_of(hint)) is not None and value not in part.also:
        try:
            registry.declared(part.family, str(value))
        except ConfigError as error:
            errors.add(place, f"{name} = {value!r}: {error}", name)
            return _BAD
    return value


def check_settings(settings: Settings) -> None:
    """Check ranges, and rules that one value alone cannot break.

    Raises:
        ConfigError: with every broken rule.
    """
    errors, place = _Errors(), Place("settings")
    for section in fields(Settings):
        value = getattr(settings, section.name)
        for part in value if isinstance(value, tuple) else (value,):
            for text in out_of_range(part, section.name):
                errors.add(place, text, text.partition(" ")[0])
    _check_rules(settings, {}, errors)
    errors.raise_if_any()


def _check_rules(settings: Settings, places: Mapping[str, Place], errors: _Errors) -> None:
    """Note every rule between settings that is broken, at the place of the first one that was written."""
    for names, text in _broken_rules(settings):
        if errors.wrong.isdisjoint(names):
            written = (places[name] for name in names if name in places)
            errors.add(next(written, Place("settings")), text)


def _broken_rules(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """(settings concerned, what is wrong) of every rule between settings that does not hold."""
    stream, learner, tracker = settings.stream, settings.learner, settings.tracker
    if Path(settings.run.name).name != settings.run.name or settings.run.name == "..":
        yield (
            ("run.name",),
            (f"run.name = {settings.run.name!r} must be the name of one folder; its parent is run.directory"),
        )
    if tracker.drift == "clock" and tracker.clock_tokens == 0:
        yield (
            ("tracker.clock_tokens", "tracker.drift"),
            (
                "tracker.clock_tokens = 0 would keep the clock of tracker.drift = 'clock' at 0 for ever; "
                "give it tokens to measure with, or tracker.drift = 'constant'"
            ),
        )
    if tracker.rho_min > tracker.rho_max:
        yield (
            ("tracker.rho_min", "tracker.rho_max"),
            (f"tracker.rho_min = {tracker.rho_min} must not exceed tracker.rho_max = {tracker.rho_max}"),
        )
    if tracker.initial_rollouts and tracker.initial_file:
        yield (
            ("tracker.initial_rollouts", "tracker.initial_file"),
            ("tracker.initial_file takes the place of tracker.initial_rollouts: give one of them"),
        )
    if tracker.initial_rollouts and settings.shaper.kind != "none":
        yield (
            ("tracker.initial_rollouts", "shaper.kind"),
            "tracker.initial_rollouts would set values of rewards that are not shaped: set it to 0",
        )
    if stream.batch % settings.estimator.group_size:
        yield (
            ("stream.batch", "estimator.group_size"),
            (
                f"stream.batch = {stream.batch} is not a multiple of estimator.group_size = "
                f"{settings.estimator.group_size}"
            ),
        )
    if stream.min_effective_share and stream.stale_policy == "wait":
        yield (
            ("stream.min_effective_share", "stream.stale_policy"),
            ("stream.min_effective_share steers a soft bound; it needs stale_policy = 'correct'"),
        )
    if learner.ranks > 1 and learner.place == "thread":
        yield (
            ("learner.ranks", "learner.place"),
            ("learner.ranks > 1 needs learner.place = 'process' (one process per rank)"),
        )
    yield from _broken_sandbox_rules(settings.sandbox)


def _broken_sandbox_rules(sandbox: SandboxSettings) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, owner in (("image", "docker"), ("runtime", "docker"), ("urls", "remote")):
        if getattr(sandbox, key) and sandbox.backend not in (owner, "broken"):
            yield (
                (f"sandbox.{key}", "sandbox.backend"),
                (f"sandbox.{key} is for sandbox.backend = {owner!r}, not {sandbox.backend!r}"),
            )
    if sandbox.backend == "remote" and not sandbox.urls:
        yield (
            ("sandbox.backend", "sandbox.urls"),
            ("sandbox.backend = 'remote' needs sandbox.urls, the servers of the pool"),
        )
    if sandbox.backend == "remote" and sandbox.libraries:
        yield (
            ("sandbox.libraries", "sandbox.backend"),
            (
                "sandbox.libraries has no effect on sandbox.backend = 'remote': name them where the pool is "
                "started (`agentrl sandbox serve --libraries`)"
            ),
        )


def to_toml(settings: Settings) -> str:
    """The resolved settings as TOML; `load_settings` reads it back to equal settings."""
    parts: list[str] = []
    for section in fields(Settings):
        value = getattr(settings, section.name)
        if section.name == "env":
            parts += [_env_table(env) for env in value]
        else:
            parts.append(
                f"[{section.name}]\n" + _lines(value, leave_out=("own",)) + _own_lines(section.name, value)
            )
    return "\n".join(parts)


def _own_lines(name: str, section: Any) -> str:
    opened = _open_field(name)
    if opened is None:
        return ""
    setting, named = opened
    values = _declaration(named, getattr(section, setting)).defaults() | section.own
    return "".join(f"{key} = {literal(value)}\n" for key, value in values.items())


def _env_table(env: EnvSettings) -> str:
    text = "[[env]]\n" + _lines(env, leave_out=("data", "settings"))
    if env.data != type(env.data)():
        text += "[env.data]\n" + _lines(env.data)
    if env.settings:
        text += "[env.settings]\n" + "".join(f"{key} = {literal(v)}\n" for key, v in env.settings.items())
    return text


def _lines(section: Any, leave_out: Sequence[str] = ()) -> str:
    return "".join(
        f"{field.name} = {literal(getattr(section, field.name))}\n"
        for field in fields(section)
        if field.name not in leave_out
    )


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if dataclasses.is_dataclass(value):
        return "{" + ", ".join(f"{f.name} = {literal(getattr(value, f.name))}" for f in fields(value)) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings with some changed, by dotted name; for code that knows what it does."""
    for name, value in values.items():
        section, key = name.split(".")
        changed = dataclasses.replace(getattr(settings, section), **{key: value})
        settings = dataclasses.replace(settings, **{section: changed})
    return settings


def describe_type(hint: Any) -> str:
    """A type as `docs/configuration.md` shows it."""
    if (within := range_of(hint)) is not None:
        return f"{describe_type(_plain(hint))}, {within}"
    if (part := part_of(hint)) is not None:
        words = [f'`"{word}"`' for word in (*part.also, *registry.BUILT_IN[part.family], "file.py:Name")]
        return " or ".join(words)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{argument!r}`".replace("'", '"') for argument in arguments)
    if origin is tuple:
        return f"list of {describe_type(arguments[0])}"
    if origin in (dict, types.UnionType):
        return "table"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), "table"
    )
