"""What made a run or an evaluation: the command and the versions of what took part, without secrets."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrl_envs.secret_text import masked_words

PACKAGES = ("agentrl", "numpy", "torch", "transformers", "vllm", "openai", "math-verify", "sympy")


def processor() -> str:
    """The name that the processor gives itself on Linux; elsewhere what Python knows of it."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python, the system and the packages that matter, where installed.

    The processor is among them: learning in bfloat16 without a GPU multiplies by it (`learner.cpu_products`).
    """
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
    }
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
