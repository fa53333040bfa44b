"""Keywords of a call as settings: short names, sections, and parts that are handed in ready made.

`train(MyEnv, data=rows, model="models/x", steps=4, learner={"learning_rate": 1e-5}, loss=MyLoss)` says the
same as `env.name`, `data.train`, ... in a file. What is no text gets one: a class or an object goes by the
name of the place where it was defined, rows are written to a file.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentrl.config import loading, registry, short_names
from agentrl.config.settings import Settings
from agentrl.config.tree import family_of
from agentrl.errors import ConfigError
from agentrl.storage.durable import write_file
from agentrl_envs import Env
from agentrl_envs.registry import hold_env

_SHORT = {**short_names.TRAIN, "policy": "engine.kind"}

Rows = Iterable[Mapping[str, Any]]


def settings_of(what: Any, given: Mapping[str, Any]) -> tuple[Settings, frozenset[str] | None]:
    """Settings from a file, an environment or other settings, and keywords.

    Args:
        what: a settings file (.toml), settings, an environment (a class, a file, a name), or None.
        given: keywords; see `values_of`.

    Returns:
        The settings, and dotted names of what was said of them; None for a file or settings, which say all.

    Raises:
        ConfigError: with every mistake found.
    """
    if isinstance(what, Settings):
        values = tables_of(tomllib.loads(loading.to_toml(what))) | values_of(given)
        return loading.load_settings(None, (), values), None
    if isinstance(what, str | Path) and str(what).endswith(".toml"):
        return loading.load_settings(Path(what), (), values_of(given)), None
    values = values_of(given if what is None else {"env": what, **given})
    return loading.load_settings(None, (), values), loading.said((), values)


def tables_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names of the values of a table of sections; lists of tables stay whole."""
    return {
        f"{section}.{key}" if isinstance(values, Mapping) else section: value
        for section, values in table.items()
        for key, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    }


def values_of(given: Mapping[str, Any], recorded: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Keywords as `loading.load_settings` takes them: by dotted name, with names in place of parts.

    Args:
        given: keywords: short names, sections with a mapping each, dotted names.
        recorded: names that ready-made parts go by, where a run knows them already, by setting.
    """
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if key == "env":
            flat |= _environments(value, (recorded or {}).get("env.name", ""))
        elif isinstance(value, Mapping):
            flat |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            flat[_SHORT.get(key, key)] = value
    folder = Path(flat.get("run.directory", "runs"))
    return {key: _plain(key, value, folder, recorded or {}) for key, value in flat.items()}


def _environments(given: Any, recorded: str) -> dict[str, Any]:
    """`env`: a class, a name or a file; a mapping as in `[env]`; or a list of them, as `[[env]]`."""
    if isinstance(given, list | tuple):
        return {"env": [_environment(one, "") for one in given]}
    return {f"env.{key}": value for key, value in _environment(given, recorded).items()}


def _environment(given: Any, recorded: str) -> dict[str, Any]:
    table = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = table.get("name")
    if isinstance(name, type) and issubclass(name, Env):
        table["name"] = hold_env(name, recorded)
    elif not isinstance(name, str | Path):
        raise ConfigError(f"env: want an Env class, a file or a name, got {name!r}")
    else:
        table["name"] = str(name)
    return table


def _plain(key: str, value: Any, folder: Path, recorded: Mapping[str, str]) -> Any:
    if isinstance(value, Path):
        return str(value)
    if key in ("data.train", "eval.data") and not isinstance(value, str):
        return rows_file(value, folder / "rows")
    family = family_of(Settings, key)
    if family is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [one if isinstance(one, str) else registry.hold(family, one) for one in value]
    return registry.hold(family, value, recorded.get(key, ""))


def rows_file(rows: Rows, folder: Path) -> str:
    """A file of rows that were handed in; equal rows have one file.

    Raises:
        ConfigError: a row is no mapping, or holds something that JSON cannot write.
    """
    lines: list[str] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ConfigError(f"data: row {number} must be a mapping of fields, got {row!r:.100}")
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"data: row {number} cannot be kept with the run, which JSON must be able to write: {error}"
            ) from error
    data = "".join(lines).encode("utf-8", "surrogatepass")
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, data, "rows")
    return str(path)
