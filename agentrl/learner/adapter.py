"""Low-rank adapters (LoRA, arXiv 2106.09685), through peft.

The weights of the model stay as they are; beside each chosen matrix W [O, I] two small ones are learned,
A [rank, I] and B [O, rank], B zero at the start: the layer computes x W^T + alpha / rank * x A^T B^T. Whoever
reads weights (an engine, an export) is given W + alpha / rank * B A under the model's own names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from agentrl.config.settings import AdapterSettings
from agentrl.errors import ConfigError
from agentrl.learner.ranks import whole, whole_each
from agentrl.weights import adapter_files
from agentrl.weights.adapter_files import merge

NAME = "default"
"""Of the one adapter, as peft calls it."""


def add_adapter(model: nn.Module, settings: AdapterSettings, *, seed: int = 0) -> None:
    """Freeze a model and put an adapter beside the matrices that the settings name.

    Args:
        model: from transformers.
        settings: rank above 0.
        seed: of the adapter's first weights.

    Raises:
        ConfigError: peft is missing, or the model has no such matrices.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "learner.adapter needs the package peft: pip install 'agentrl[train]', or pip install peft"
        ) from error
    targets = "all-linear" if settings.targets == ("all-linear",) else list(settings.targets)
    config = peft.LoraConfig(r=settings.rank, target_modules=targets)
    config.lora_alpha = settings.alpha or 2 * settings.rank  # pyrefly: ignore[bad-assignment]
    model.requires_grad_(False)
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        # A is drawn at random; every rank and every start of a run must draw the same.
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ConfigError(
            f"learner.adapter.targets = {list(settings.targets)} names no matrix of {type(model).__name__}: "
            f"{error}"
        ) from error
    model.agentrl_adapter = config  # type: ignore[assignment]


def _adapted(module: nn.Module) -> dict[str, Any]:
    """Layers with an adapter by their name in the model."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A")
    }


def named_weights(
    module: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, Tensor, Any | None]]:
    """The weights of a model under its own names, not gathered, each with the adapted layer it belongs to.

    Args:
        module: live; its weights must not change meanwhile.
        remove_duplicate: give parameters only, and one that has two names once; else all that is saved.
    """
    layers = _adapted(module)
    # From the state rather than the parameters: FSDP2 puts its shards back in place before it gives it.
    own = {name for name, _ in module.named_parameters()} if remove_duplicate else set()
    for name, tensor in module.state_dict().items():
        owner, _, kind = name.rpartition(".base_layer.")
        if ".lora_" in name or (remove_duplicate and name not in own):
            continue
        if owner not in layers:
            yield name, tensor.detach(), None
        else:
            yield f"{owner}.{kind}", tensor.detach(), layers[owner] if kind == "weight" else None


def plain_weights(
    module: nn.Module, *, remove_duplicate: bool = True, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The same weights, whole and with the adapter merged, one at a time; see `named_weights`.

    `dtype` is the type in which they are given, which split weights have before they are gathered; None keeps
    their own.
    """
    named = list(named_weights(module, remove_duplicate=remove_duplicate))
    parts = whole_each(
        part if dtype is None or layer is not None else part.to(dtype)
        for _, tensor, layer in named
        for part in (tensor, *_factors(layer))
    )
    for (name, _, layer), weight in zip(named, parts, strict=False):
        plain = weight if layer is None else merge(weight, next(parts), next(parts), layer.scaling[NAME])
        yield name, plain if dtype is None else plain.to(dtype)


def plain_weight(tensor: Tensor, layer: Any | None, out: Tensor) -> None:
    """Write a weight of `named_weights` into another tensor, whole and with the adapter merged."""
    if layer is None:
        out.copy_(whole(tensor))
    else:
        a, b = map(whole, _factors(layer))
        merge(whole(tensor), a, b, layer.scaling[NAME], out)


def _factors(layer: Any | None) -> tuple[Tensor, ...]:
    """A [rank, I] and B [O, rank] of an adapted layer."""
    if layer is None:
        return ()
    return tuple(getattr(layer, part)[NAME].weight.detach() for part in ("lora_A", "lora_B"))


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of a model without its adapter: the adapter is merged into the copy's weights."""
    with torch.no_grad():
        result = copy.deepcopy(module)
        if not has_adapter(module):
            return result
        for name, layer in _adapted(result).items():
            parent, _, own = name.rpartition(".")
            setattr(result.get_submodule(parent), own, layer.base_layer)
        del result.agentrl_adapter
        for name, tensor, adapted in named_weights(module):
            plain_weight(tensor, adapted, result.get_parameter(name))
    return result


def write_adapter(module: nn.Module, folder: Path, source: str = "", *, write: bool = True) -> None:
    """Write the adapter apart, as peft and vLLM read it.

    Args:
        module: has an adapter.
        folder: made where missing.
        source: the model it belongs to; the one it was loaded from by default.
        write: whether this rank writes; gathering split weights takes all of them.
    """
    from safetensors.torch import save_file

    config = cast("Any", module).agentrl_adapter
    config.base_model_name_or_path = source or str(cast("Any", module).config._name_or_path)
    own = {name: parameter.detach() for name, parameter in module.named_parameters() if ".lora_" in name}
    tensors = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor.cpu().contiguous()
        for name, tensor in zip(own, whole_each(own.values()), strict=True)
    }
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        save_file(tensors, folder / adapter_files.WEIGHTS, metadata={"format": "pt"})


def has_adapter(module: nn.Module) -> bool:
    """Whether `add_adapter` was called on it."""
    return hasattr(module, "agentrl_adapter")
