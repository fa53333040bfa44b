"""What makers of classes share: settings checked while the class is made, and the range of its rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SettingsError

__all__ = ["make_class"]


def make_class(
    base: type, body: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A subclass of `base` with more attributes, and the settings as it reads them.

    Where `base` has the settings `lowest` and `highest`, they are its `reward_range`.

    Raises:
        SettingsError: settings that it does not have, or an empty range.
    """
    made: Any = type(base.__name__, (base,), {"__module__": base.__module__, **body})
    given = made.check_settings(settings)
    if "lowest" in made.setting_types():
        low, high = (given.get(name, getattr(made, name)) for name in ("lowest", "highest"))
        if not low < high:
            raise SettingsError(f"{base.__name__}: lowest {low:g} is not below highest {high:g}")
        made.reward_range = (low, high)
    return made, given
