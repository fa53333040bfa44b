"""Copies the weights of one version into a model that goes on being used.

Everything is checked before the first weight is touched, so that a version that cannot be taken
leaves the old one whole. Knows nothing of versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentrl.errors import WeightSyncError
from agentrl.learner.adapter import plain_weights
from agentrl.weights.adapter_files import base_of, is_adapter, merged_tensors


def copy_weights(model: torch.nn.Module, source: Any) -> None:
    """Overwrite the parameters of `model`.

    Args:
        source: a model with the same parameters, whose weights must not change meanwhile; a mapping
            of names to tensors; a folder (or file) of safetensors; or a folder of an adapter, which is
            merged into the files of its base model.

    Raises:
        WeightSyncError: a parameter is missing or has another shape; nothing was changed.
    """
    tensors = _tensors(source)
    targets = dict(model.named_parameters())
    tied = _tied_names(model)
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, target in targets.items():
        found = next((tensors[n] for n in (name, *tied.get(name, ())) if n in tensors), None)
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
            target.copy_(found)


def _tensors(source: Any) -> Mapping[str, Tensor]:
    if isinstance(source, torch.nn.Module):
        # Names of a wrapped model (compiled, data parallel) begin with the wrapper's.
        named = plain_weights(source, remove_duplicate=False)
        return {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in named}
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str | Path):
        if is_adapter(source):
            return dict(_merged(source))
        return dict(_read_folder(Path(source)))
    raise WeightSyncError(
        "weights come from a model, a mapping of tensors or a folder of safetensors, "
        f"not from {type(source).__name__}"
    )


def _merged(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    try:
        yield from merged_tensors(base_of(folder), folder)
    except (OSError, ValueError, KeyError) as error:
        raise WeightSyncError(f"the adapter in {folder} cannot be merged: {error}") from error


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
