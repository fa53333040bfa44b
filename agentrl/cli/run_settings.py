"""Settings of a run, from the argument of `train` and `doctor`: a settings file or an environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentrl.config.settings import Settings


def settings_of(file: str, flags: Sequence[str]) -> Settings:
    """Settings of a run from a settings file (.toml) or an environment, and flags; no file takes defaults."""
    from agentrl.config import loading

    if file.endswith(".toml"):
        return loading.load_settings(Path(file), flags)
    return loading.load_settings(None, [*([f"--env.name={file}"] if file else []), *flags])


def said_in(file: str, flags: Sequence[str]) -> frozenset[str] | None:
    """What was said of a run without a settings file, whose other settings are chosen; None with one."""
    from agentrl.config import loading

    return None if file.endswith(".toml") else loading.said([f"--env.name={file}", *flags])
