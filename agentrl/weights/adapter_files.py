"""Low-rank adapters as files (peft's format), and a model with its adapter merged, a tensor at a time.

Merging needs the files of the base model and those of the adapter, never a live model: so an adapter can
travel alone and be merged where the base lies already. A vLLM server loads this file by path beside
`inference/vllm/extension.py`: it imports torch and safetensors, where used, and nothing of agentrl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def is_adapter(path: Any) -> bool:
    """Whether it is the path of a folder with an adapter, and no merged model beside it."""
    if not isinstance(path, str | Path):  # a live module
        return False
    folder = Path(path)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: str | Path) -> str:
    """The model an adapter belongs to: a folder, or an id of the Hugging Face hub.

    Raises:
        ValueError: it does not say.
    """
    base = json.loads((Path(folder) / CONFIG).read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{Path(folder) / CONFIG} does not name its base model (base_model_name_or_path)")
    return str(base)


def weight_files(path: str | Path) -> list[Path]:
    """The safetensors files of a file, a folder or a hub id on this machine, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    root = Path(path)
    if not root.exists() and str(path).count("/") <= 1:
        from huggingface_hub import snapshot_download

        root = Path(snapshot_download(str(path), allow_patterns=["*.safetensors"], local_files_only=True))
    files = sorted(root.glob("*.safetensors")) if root.is_dir() else [root]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"no safetensors file at {path}")
    return files


def read_tensors(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Tensors of a file or folder, mapped into memory one at a time."""
    from safetensors import safe_open

    for file in weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield name, tensors.get_tensor(name)


def owner_of(name: str) -> str:
    """The weight that a tensor of an adapter changes, by the model's name for it."""
    return name.removeprefix(_PREFIX).rpartition(".lora_")[0] + ".weight"


def scaling(config: dict[str, Any]) -> float:
    """What the product B A is multiplied by: alpha / rank, or alpha / sqrt(rank) (rsLoRA).

    Raises:
        ValueError: the adapter is of a kind whose merged weights are more than W + scaling * B A.
    """
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if config.get(name):
            raise ValueError(f"{CONFIG} says {name} = {config[name]!r}: such adapters are not merged here")
    if config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise ValueError(f"{CONFIG} names biases or whole modules: such adapters are not merged here")
    rank = int(config["r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def merge(weight: Any, a: Any, b: Any, scale: float, out: Any = None) -> Any:
    """W + scale * B A, added in float32 and rounded once.

    Args:
        weight: [O, I]
        a: [rank, I]
        b: [O, rank]
        scale: alpha / rank.
        out: [O, I] where it is written, of any type; None makes a new tensor.
    """
    import torch

    if out is not None and weight.dtype == out.dtype == torch.float32:
        return torch.addmm(weight, b.float(), a.float(), alpha=scale, out=out)
    merged = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight.dtype)
    return merged if out is None else out.copy_(merged)


class MergedFiles:
    """The weights of a model with its adapter merged, under the model's own names, each read when asked for.

    Args:
        base: folder of the model, or a hub id that is on this machine.
        adapter: folder that holds the adapter.

    Raises:
        ValueError: the adapter belongs to another model, or is of a kind that is not merged here.
    """

    def __init__(self, base: str | Path, adapter: str | Path) -> None:
        from safetensors import safe_open

        self._scale = scaling(json.loads((Path(adapter) / CONFIG).read_text()))
        self._parts = dict(read_tensors(Path(adapter) / WEIGHTS))
        files = [safe_open(file, framework="pt") for file in weight_files(base)]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no mapping)
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}
        self._adapted = {owner_of(name) for name in self._parts}
        for name in sorted(self._adapted):
            if name not in self.shapes:
                raise ValueError(f"the adapter in {adapter} changes {name!r}, which {base} does not have")
            a, b = self._pair(name)
            if (b.shape[0], a.shape[1]) != self.shapes[name] or b.shape[1] != a.shape[0]:
                shape = list(self.shapes[name])
                raise ValueError(f"the adapter in {adapter} does not fit {name} {shape} of {base}")

    def _pair(self, name: str) -> tuple[Any, Any]:
        owner = f"{_PREFIX}{name.removesuffix('.weight')}"
        a, b = (self._parts[f"{owner}.lora_{kind}.weight"] for kind in "AB")
        return a, b

    def read(self, name: str, out: Any = None) -> Any:
        """One weight, whose memory is the file's where it is not adapted; or written into a tensor."""
        weight = self._files[name].get_tensor(name)
        if name not in self._adapted:
            return weight if out is None else out.copy_(weight)
        a, b = self._pair(name)
        if out is not None and out.dtype == weight.dtype == a.dtype:
            return merge(weight, a, b, self._scale, out)
        # In the type it was learned with, so that every reader of these files gets the learner's bits.
        merged = merge(weight.to(a.dtype), a, b, self._scale).to(weight.dtype)
        return merged if out is None else out.copy_(merged)


def merged_tensors(base: str | Path, adapter: str | Path) -> Iterator[tuple[str, Any]]:
    """All weights of `MergedFiles`, one at a time."""
    merged = MergedFiles(base, adapter)
    for name in merged.shapes:
        yield name, merged.read(name)
