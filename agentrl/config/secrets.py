"""Settings that hold keys, passwords and tokens: never written, only the variables that they are read from.

A run writes its settings into files, pages and tracking services. So a secret is given as `"$NAME"`, a
variable that is read when an environment is loaded and made, and is refused as it is.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from agentrl.errors import ConfigError
from agentrl_envs import EnvError
from agentrl_envs.secret_text import (
    HIDDEN,
    exposed_in,
    exposed_in_words,
    filled_text,
    filled_words,
    is_reference,
    is_secret,
    masked,
    variables_in,
    with_variables,
)

__all__ = [
    "HIDDEN",
    "check_secrets",
    "is_secret",
    "told_without_secrets",
    "with_secrets",
    "without_secrets",
    "words_with_secrets",
]

_FILLED = re.compile(r"env(\.name|\.settings\..*)|engine\.args")
"""Settings in which variables are read."""
_SHORTEST = 6
"""Characters of what is replaced in messages; what is shorter stands in any text."""
_COMMAND = re.compile(r"(^env\.name|[._](command|cmd))$")


def without_secrets(value: Any, name: str = "") -> Any:
    """A nested value in which whatever is called a key, a password or an access token reads `***`."""
    if isinstance(value, dict):
        return {key: without_secrets(item, _of(name, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if value and is_secret(name):
        return HIDDEN
    return masked(value) if isinstance(value, str) and exposed_in(value) else value


def check_secrets(settings: Mapping[str, Any]) -> None:
    """Refuse settings that hold a secret.

    Args:
        settings: sections, as `dataclasses.asdict` gives them.

    Raises:
        ConfigError: there is one; names it and shows nothing of it.
    """
    found = list(dict.fromkeys(_exposed(settings, "", "")))
    if not found:
        return
    names = " and ".join(dict.fromkeys(name for name, _ in found))
    name, why = found[0]
    mend = (
        f'put it into a variable of the environment and name that, {name} = "$NAME" (in a URL or an argument '
        "$NAME stands in its place)"
        if _FILLED.fullmatch(name)
        else f"{name} cannot hold one, and no $NAME is read there; endpoints and partners have their keys in "
        "the variables that docs/configuration.md names"
    )
    raise ConfigError(f"{names} would be written into the files of the run: {why}; {mend}")


def _of(above: str, key: object) -> str:
    """The name that says whether a value is secret: all is, below a name that is."""
    return above if is_secret(above) else str(key)


def _exposed(value: Any, place: str, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, why) of every secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _exposed(item, f"{place}.{key}" if place else str(key), _of(name, key))
    elif isinstance(value, list | tuple):
        if exposed_in_words([item if isinstance(item, str) else "" for item in value]):
            yield place, "an argument names a key or a password"
        for item in value:
            yield from _exposed(item, place, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if re.search(r"passw|api_?key|passphrase", name, re.I) and is_secret(name):
            yield place, "it is called a key, a password or a token"
    elif isinstance(value, str) and value and (why := _why(value, place, name)):
        yield place, why


def _why(text: str, place: str, name: str) -> str:
    """Why a text may not be written; empty where it may."""
    refers = bool(_FILLED.fullmatch(place))
    if is_secret(name) and not (refers and is_reference(text)):
        return "it is called a key, a password or a token"
    if why := exposed_in(text, refers):
        return why
    if _COMMAND.search(place):
        try:
            words = shlex.split(text.partition(":")[2] if place == "env.name" else text)
        except ValueError:
            words = text.split()
        if exposed_in_words(words):
            return "an argument names a key or a password"
    return ""


def with_secrets(settings: Mapping[str, Any], own: Container[str] = ()) -> dict[str, Any]:
    """Settings of an environment in which `"$NAME"`, where a secret is wanted, is what that variable holds.

    Args:
        settings: as they were written.
        own: names of those in which the environment reads variables itself (`Env.reads_variables`).

    Raises:
        ConfigError: there is no such variable.
    """
    try:
        return {
            key: value if key in own else _filled(value, key, _of("", key)) for key, value in settings.items()
        }
    except EnvError as error:
        raise ConfigError(str(error)) from None


def told_without_secrets(text: str, settings: Mapping[str, Any]) -> str:
    """A message about an environment, without what its name and the variables of its settings hold."""
    for name in variables_in(repr(settings)):
        if len(held := os.environ.get(name, "")) >= _SHORTEST:
            text = text.replace(held, f"${name}")
    return masked(text)


def words_with_secrets(words: Sequence[str]) -> list[str]:
    """Arguments of a program in which `$NAME`, where a secret is wanted, is what that variable holds.

    Raises:
        ConfigError: there is no such variable.
    """
    try:
        return filled_words(words)
    except EnvError as error:
        raise ConfigError(str(error)) from None


def _filled(value: Any, place: str, name: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(item, f"{place}.{key}", _of(name, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        texts = filled_words([item if isinstance(item, str) else "" for item in value])
        items = [
            text if isinstance(item, str) and text != item else _filled(item, place, name)
            for item, text in zip(value, texts, strict=True)
        ]
        return type(value)(items)
    if not isinstance(value, str):
        return value
    return with_variables(value, place) if is_secret(name) and is_reference(value) else filled_text(value)
