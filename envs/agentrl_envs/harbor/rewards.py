"""The reward that the tests of a task left behind. Knows nothing of where the files lie."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..errors import EnvError

__all__ = ["reward_of"]


def reward_of(as_json: bytes | None, as_text: bytes | None, what: str, key: str = "reward") -> float:
    """The number in `reward.json`, or else in `reward.txt`.

    Args:
        as_json: what stands in `reward.json`: a number, or an object of numbers; None where there is none.
        as_text: what stands in `reward.txt`.
        what: begins the message of an error.
        key: of the object, where it has several numbers.

    Raises:
        EnvError: there is no reward, or none that can be read; never a reward of 0.
    """
    if as_json is not None:
        try:
            value: Any = json.loads(as_json)
        except ValueError as error:
            raise EnvError(f"{what} left a reward.json that is no JSON: {as_json[:100]!r}") from error
        return _number(_chosen(value, what, key), f"{what} left the reward.json {value!r:.200}")
    if as_text is None:
        raise EnvError(f"{what} left neither /logs/verifier/reward.txt nor reward.json")
    try:
        return _number(float(as_text), f"{what} left the reward {as_text!r:.100}")
    except ValueError as error:
        raise EnvError(f"{what} left a reward.txt that is no number: {as_text[:100]!r}") from error


def _chosen(value: Any, what: str, key: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        return next(iter(value.values()))
    if key not in value:
        names = ", ".join(map(str, value)) or "nothing"
        raise EnvError(f"{what} left a reward.json without {key!r}; it has: {names} (the setting reward_key)")
    return value[key]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise EnvError(f"{what}: want a finite number")
    return float(value)
