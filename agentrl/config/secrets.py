"""Settings that hold keys, passwords and tokens: never written, only the variables that they are read from.

A run writes its settings into files, pages and tracking services. So a secret is given as `"$NAME"`, a
variable that is read when an environment is made, and is refused as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from agentrl.errors import ConfigError

HIDDEN = "***"
_SECRET = re.compile(
    r"api_?key|secret|password|passwd|credential|authorization|cookie"
    r"|(auth|access|bearer|hub|hf)_?token|^token$|(?-i:[A-Z0-9]_(KEY|TOKEN)$)",
    re.I,
)
_LIKE_A_KEY = re.compile(
    r"\b(sk-[\w-]{20,}|hf_\w{20,}|gh[pousr]_\w{20,}|xox[abp]-[\w-]{10,}|AKIA[0-9A-Z]{16})\b"
)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_FLAG = re.compile(r"--([\w.-]+)(?:=(.*))?", re.S)


def is_secret(name: str) -> bool:
    """Whether a setting of that name holds what nobody else should read."""
    return bool(_SECRET.search(name.rpartition(".")[2].replace("-", "_")))


def without_secrets(value: Any, name: str = "") -> Any:
    """A nested value in which whatever is called a key, a password or an access token reads `***`."""
    if isinstance(value, dict):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    return HIDDEN if value and is_secret(name) else value


def without_secret_flags(words: Sequence[str]) -> list[str]:
    """Words of a command; what follows a flag that names a secret is `***`."""
    shown, hide = [], False
    for word in words:
        flag = _FLAG.fullmatch(word)
        secret = flag is not None and is_secret(flag[1])
        shown.append(
            f"--{flag[1]}={HIDDEN}" if flag and secret and flag[2] is not None else HIDDEN if hide else word
        )
        hide = secret and flag is not None and flag[2] is None
    return shown


def check_secrets(settings: Mapping[str, Any]) -> None:
    """Refuse settings that hold a secret.

    Args:
        settings: sections, as `dataclasses.asdict` gives them.

    Raises:
        ConfigError: there is one; names it and shows nothing of it.
    """
    found = list(_exposed(settings, ""))
    if found:
        names = " and ".join(name for name, _ in found)
        raise ConfigError(
            f"{names} would be written into the files of the run: {found[0][1]}; put it into a variable "
            f'of the environment and name that, {found[0][0]} = "$NAME"'
        )


def _exposed(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, why) of every secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _exposed(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        texts = [item for item in value if isinstance(item, str)]
        if texts != without_secret_flags(texts):
            yield name, "an argument names a key or a password"
        for item in value:
            yield from _exposed(item, name)
    elif isinstance(value, str) and value and not _VARIABLE.search(value):
        if is_secret(name):
            yield name, "it is called a key, a password or a token"
        elif _LIKE_A_KEY.search(value):
            yield name, "it holds what looks like a key"
        elif "://" in value and urlsplit(value).password:
            yield name, "the URL holds a password"


def with_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an environment in which `"$NAME"`, where a secret is wanted, is what that variable holds.

    Raises:
        ConfigError: there is no such variable.
    """
    return {key: _filled(value, key) for key, value in settings.items()}


def _filled(value: Any, name: str) -> Any:
    if isinstance(value, dict) and name != "headers":  # in which an environment fills in its own
        return {key: _filled(item, str(key)) for key, item in value.items()}
    if not isinstance(value, str) or not is_secret(name) or not (variable := _VARIABLE.fullmatch(value)):
        return value
    if variable[1] not in os.environ:
        raise ConfigError(
            f"{name} is read from the variable {variable[1]}, which is not set: export {variable[1]}=..."
        )
    return os.environ[variable[1]]
