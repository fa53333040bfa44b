"""What made a run or an evaluation: the command and the versions of what took part, without secrets."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("agentrl", "numpy", "torch", "transformers", "vllm", "openai", "math-verify", "sympy")

_SECRET = re.compile(
    r"api_?key|secret|password|passwd|credential|(auth|access|bearer|hub|hf)_?token|^token$", re.I
)
_FLAG = re.compile(r"--([\w.-]+)(?:=(.*))?", re.S)


def versions() -> dict[str, str]:
    """Versions of Python, the system and the packages that matter, where installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(words: Sequence[str] | None = None) -> list[str]:
    """The words of a command, `sys.argv` by default; what follows a flag that names a secret is `***`."""
    program, *given = sys.argv if words is None else words
    shown = [Path(program).name]
    hide = False
    for word in given:
        flag = _FLAG.fullmatch(word)
        secret = flag is not None and is_secret(flag[1])
        shown.append(
            f"--{flag[1]}=***" if flag and secret and flag[2] is not None else "***" if hide else word
        )
        hide = secret and flag is not None and flag[2] is None
    return shown


def is_secret(name: str) -> bool:
    """Whether a setting of that name holds what nobody else should read."""
    return bool(_SECRET.search(name.rpartition(".")[2].replace("-", "_")))


def without_secrets(value: Any, name: str = "") -> Any:
    """A nested value in which whatever is called a key, a password or an access token reads `***`."""
    if isinstance(value, dict):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    return "***" if value and is_secret(name) else value
