"""Nested plain values with arrays in them: one file of both, and what changed between two of them.

A nested value is made of mappings with text keys, lists, arrays, numbers, texts and None. It knows nothing of
what they mean.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Nested = Any
Difference = dict[str, Any]

_PLAIN = "plain"
"""Name of the array that holds everything else, as JSON."""


def to_bytes(value: Nested) -> bytes:
    """A nested value as the bytes of one `.npz` file, uncompressed."""
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_split(value, "", arrays))
    file = io.BytesIO()
    arrays[_PLAIN] = np.frombuffer(text.encode(), dtype=np.uint8)
    np.savez(file, **arrays)  # pyrefly: ignore[bad-argument-type]
    return file.getvalue()


def read(path: Path) -> Nested:
    """A nested value from a file of `to_bytes`; damaged bytes raise almost anything."""
    # Opened here: of a damaged file numpy leaves its own descriptor open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return _join(json.loads(arrays[_PLAIN].tobytes()), arrays)


def _split(value: Nested, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Replace arrays by references into `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"__array__": name}
    if isinstance(value, Mapping):
        return {key: _split(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}/{place}", arrays) for place, item in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Nested:
    if isinstance(value, dict):
        if "__array__" in value:
            return arrays[value["__array__"]]
        return {key: _join(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, arrays) for item in value]
    return value


def difference(old: Nested, new: Nested) -> Difference:
    """What has to be set in `old` to get `new`; empty where nothing has, and a nested value itself.

    Of arrays and mappings only what changed is kept, so that it is small where few entries of many did.
    """
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return _of_arrays(old, new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = _numbered(old), _numbered(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() <= new.keys():
        parts = {key: difference(old[key], item) for key, item in new.items() if key in old}
        parts |= {key: {"set": item} for key, item in new.items() if key not in old}
        changed = {key: part for key, part in parts.items() if part}
        return {"in": changed} if changed else {}
    return {} if type(old) is type(new) and _equal(old, new) else {"set": new}


def applied(old: Nested, change: Difference) -> Nested:
    """What `old` becomes by a `difference`; `old` stays as it is."""
    if not change:
        return old
    if "set" in change:
        return change["set"]
    if "at" in change:
        array = np.empty((change["size"], *old.shape[1:]), dtype=old.dtype)
        array[: len(old)] = old
        array[change["at"]] = change["to"]
        return array
    parts: Mapping[str, Difference] = change["in"]
    if isinstance(old, list):
        return [applied(item, parts.get(str(place), {})) for place, item in enumerate(old)]
    return {**old, **{key: applied(old.get(key), part) for key, part in parts.items()}}


def _of_arrays(old: np.ndarray, new: np.ndarray) -> Difference:
    same_kind = old.dtype == new.dtype and old.shape[1:] == new.shape[1:]
    if not (same_kind and old.ndim and len(new) >= len(old)):
        return {"set": new}
    differs = old != new[: len(old)]
    if differs.ndim > 1:
        differs = differs.any(axis=tuple(range(1, differs.ndim)))
    places = np.concatenate([np.flatnonzero(differs), np.arange(len(old), len(new))]).astype(np.int32)
    return {"at": places, "to": new[places], "size": len(new)} if len(places) else {}


def _equal(old: Any, new: Any) -> bool:
    # Lists of other lengths and mappings that lost a key may hold arrays, which have no one truth.
    return not isinstance(old, list | Mapping) and old == new


def _numbered(items: list[Any]) -> dict[str, Any]:
    return {str(place): item for place, item in enumerate(items)}
