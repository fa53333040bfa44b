"""Copies the weights of one version into a model that goes on being used.

Everything is checked before the first weight is touched, so that a version that cannot be taken
leaves the old one whole. Knows nothing of versions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentrl.errors import WeightSyncError
from agentrl.learner.adapter import named_weights, plain_weight
from agentrl.weights.adapter_files import MergedFiles, base_of, is_adapter


def copy_weights(model: torch.nn.Module, source: Any) -> None:
    """Overwrite the parameters of `model`.

    Args:
        source: a model with the same parameters, whose weights must not change meanwhile; a mapping
            of names to tensors; a folder (or file) of safetensors; or a folder of an adapter, which is
            merged into the files of its base model.

    Raises:
        WeightSyncError: a parameter is missing or has another shape; nothing was changed.
    """
    weights = _weights(source)
    tied = _tied_names(model)
    pairs: list[tuple[Tensor, _Weight]] = []
    for name, target in model.named_parameters():
        found = next((weights[n] for n in (name, *tied.get(name, ())) if n in weights), None)
        if found is None:
            raise WeightSyncError(f"the new weights have no parameter {name!r}")
        if found.shape != target.shape:
            raise WeightSyncError(
                f"parameter {name!r} has shape {tuple(found.shape)} in the new weights and "
                f"{tuple(target.shape)} in the engine"
            )
        pairs.append((target, found))
    with torch.no_grad():
        for target, found in pairs:
            found.write(target)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A new weight, which is read or merged when it is written: straight into its place."""

    shape: tuple[int, ...]
    write: Callable[[Tensor], object]


def _weights(source: Any) -> Mapping[str, _Weight]:
    if isinstance(source, torch.nn.Module):
        return _of_module(source)
    if isinstance(source, Mapping):
        return _of_tensors(source)
    if isinstance(source, str | Path):
        return _of_adapter(source) if is_adapter(source) else _of_tensors(dict(_read_folder(Path(source))))
    raise WeightSyncError(
        "weights come from a model, a mapping of tensors or a folder of safetensors, "
        f"not from {type(source).__name__}"
    )


def _of_module(module: torch.nn.Module) -> dict[str, _Weight]:
    found: dict[str, _Weight] = {}
    for name, tensor, layer in named_weights(module, remove_duplicate=False):
        # Names of a wrapped model (compiled, data parallel) begin with the wrapper's.
        plain = name.removeprefix("module.").removeprefix("_orig_mod.")
        found[plain] = _Weight(tuple(tensor.shape), functools.partial(plain_weight, tensor, layer))
    return found


def _of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, _Weight]:
    def write(tensor: Tensor, target: Tensor) -> None:
        target.copy_(tensor)

    return {
        name: _Weight(tuple(tensor.shape), functools.partial(write, tensor))
        for name, tensor in tensors.items()
    }


def _of_adapter(folder: str | Path) -> dict[str, _Weight]:
    from safetensors import SafetensorError

    try:
        merged = MergedFiles(base_of(folder), folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise WeightSyncError(f"the adapter in {folder} cannot be merged: {error}") from error
    return {
        name: _Weight(shape, functools.partial(merged.read, name)) for name, shape in merged.shapes.items()
    }


def _read_folder(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in _files(path):
        try:
            yield from load_file(file).items()
        except (OSError, SafetensorError) as error:
            raise WeightSyncError(f"cannot read {file}: {error}") from error


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise WeightSyncError(f"no safetensors in {path}")
    return files


def _tied_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """Other names of the same parameter (an output layer tied to the embeddings)."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            names.setdefault(first[id(parameter)], []).append(name)
        else:
            first[id(parameter)] = name
    return names
