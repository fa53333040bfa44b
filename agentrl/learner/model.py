"""Hugging Face models for the learner: loading, and saving in a form that any engine loads."""

from __future__ import annotations

import copy
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from agentrl.config.settings import ModelSettings
from agentrl.errors import CheckpointError, ConfigError
from agentrl.learner.adapter import has_adapter, plain_weights, write_adapter

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Copied as they are: writing a tokenizer again may change it."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """The device that `model.device` names; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.device = {name!r} cannot be used: {reason}") from error
    return device


def choose_attention(settings: ModelSettings, device: torch.device) -> str:
    """The attention kernel that `model.attention` means on a device, by transformers' name."""
    if settings.attention != "auto":
        return settings.attention
    if device.type == "cuda" and settings.dtype == "bfloat16":
        for package, name in (("flash_attn_3", "flash_attention_3"), ("flash_attn", "flash_attention_2")):
            if find_spec(package) is not None:
                return name
    return "sdpa"


def load_model(settings: ModelSettings, device: torch.device) -> nn.Module:
    """Load a causal language model, without dropout.

    Args:
        settings: see `ModelSettings`.
        device: where its weights go.

    Raises:
        ConfigError: the model does not exist or cannot be loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would write into the run's own display
    if not settings.path:
        raise ConfigError(
            "model.path is empty; give a folder with Hugging Face weights, or a Hugging Face id"
        )
    folder = Path(settings.path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ConfigError(f"model.path = {settings.path!r} holds no config.json; it is not a model folder")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            settings.path,
            dtype=DTYPES[settings.dtype],
            attn_implementation=choose_attention(settings, device),
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.path = {settings.path!r} cannot be loaded: {reason}") from error
    _refuse_experts(model, settings.path)
    remove_dropout(model)
    return cast("nn.Module", model.to(cast("Any", device)))


def _refuse_experts(model: Any, path: str) -> None:
    config = model.config.get_text_config()
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if (getattr(config, name, None) or 0) > 1:
            raise ConfigError(
                f"model.path = {path!r} is a mixture of {getattr(config, name)} experts, which the learner "
                "refuses: engine and learner would choose other experts for the same token, and routes are "
                "not replayed here; take a dense model"
            )


def remove_dropout(model: nn.Module) -> None:
    """Set all dropout to 0: with it, current and proximal policy would differ before any step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            cast("Any", module).attention_dropout = 0.0


def save_model(
    model: nn.Module,
    source: str,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    write: bool = True,
) -> None:
    """Write weights (safetensors), configuration and tokenizer, as `from_pretrained` reads them.

    Args:
        model: a transformers model.
        source: where the model came from; tokenizer and generation settings are taken from there.
        folder: made where missing.
        dtype: of the files; split weights are float32 whatever is computed with. None keeps the weights' own.
        write: whether this rank writes; gathering split weights takes all of them.

    Raises:
        CheckpointError: the files cannot be written.
    """
    weights: dict[str, torch.Tensor] = {}
    split = has_adapter(model) or any(hasattr(item, "full_tensor") for item in model.state_dict().values())
    for name, tensor in plain_weights(model, remove_duplicate=False):
        if write:
            # Gathered or merged one at a time: all at once would not fit beside the optimizer.
            kept = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            weights[name] = kept.cpu() if split else kept
    if has_adapter(model):
        save_adapter(model, source, folder / "adapter", write=write)
    if not write:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config = cast("Any", model).config
        own, config.dtype = config.dtype, dtype or config.dtype
        cast("Any", model).save_pretrained(folder, state_dict=weights)
        config.dtype = own
        if Path(source).is_dir():
            for name in TOKENIZER_FILES:
                file = Path(source) / name
                if file.is_file() and file.resolve() != (folder / name).resolve():
                    shutil.copyfile(file, folder / name)
        else:
            from transformers import AutoTokenizer

            cast("Any", AutoTokenizer.from_pretrained(source)).save_pretrained(folder)
    except OSError as error:
        raise CheckpointError(f"weights cannot be written to {folder}: {error}") from error


def save_config(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Write the configuration of a model whose weights are written as `dtype`; makes the folder."""
    config = copy.deepcopy(cast("Any", model).config)
    config.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)


def save_adapter(model: nn.Module, source: str, folder: Path, *, write: bool = True) -> None:
    """Write the adapter of a model apart, see `write_adapter`.

    Raises:
        CheckpointError: the files cannot be written.
    """
    try:
        base = str(Path(source).absolute()) if Path(source).is_dir() else source
        write_adapter(model, folder, base, write=write)
    except OSError as error:
        raise CheckpointError(f"the adapter cannot be written to {folder}: {error}") from error
