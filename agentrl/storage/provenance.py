"""What made a run or an evaluation: the command and the versions of what took part, without secrets."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrl_envs.secret_text import masked_words

PACKAGES = ("agentrl", "numpy", "torch", "transformers", "vllm", "openai", "math-verify", "sympy")


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
    """The words of a command, `sys.argv` by default; passwords and keys in them are `***`."""
    program, *given = sys.argv if words is None else words
    return [Path(program).name, *masked_words(given)]
