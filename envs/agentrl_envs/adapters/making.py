"""What makers of classes share: settings checked while the class is made, range of rewards, rows of seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from ..env import Env
from ..errors import SettingsError

__all__ = ["RangedEnv", "make_class", "seeded_rows"]

_SEEDS = 2**30
"""Seeds of each split."""


class RangedEnv(Env):
    """An environment whose range of rewards is a setting: what it wraps does not tell it."""

    lowest: float = 0.0
    """Least reward of an episode."""
    highest: float = 1.0
    """Greatest reward of an episode."""


def make_class(
    base: type, body: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A subclass of `base` with more attributes, and the settings as it reads them.

    The `reward_range` of a `RangedEnv` is what its settings say.

    Raises:
        SettingsError: settings that it does not have, or an empty range.
    """
    made: Any = type(base.__name__, (base,), {"__module__": base.__module__, **body})
    given = made.check_settings(settings)
    if issubclass(base, RangedEnv):
        low, high = (given.get(name, getattr(made, name)) for name in ("lowest", "highest"))
        if not low < high:
            raise SettingsError(f"{base.__name__}: lowest {low:g} is not below highest {high:g}")
        made.reward_range = (low, high)
    return made, given


def seeded_rows(name: str, count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """`count` rows `{"id", "seed"}`, for what a seed is enough for; no seed is in both splits."""
    first = _SEEDS if split == "test" else 0
    seeds = random.Random(f"{name}/{split}/{seed}").sample(range(first, first + _SEEDS), count)
    return [{"id": f"{split}-{one}", "seed": one} for one in seeds]
