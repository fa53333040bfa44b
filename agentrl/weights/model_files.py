"""The files of a model: where they are, whether they are whole, and the tokenizer among them.

Looked at before anything is started, so that a wrong path, a download that broke off or a hub out of
reach is one sentence at once. Imports transformers only to load a tokenizer; knows no weights.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import ConfigError
from agentrl.weights.adapter_files import base_of, is_adapter, merged_tensors

WARM_START = "sft.json"
"""What a warm start writes beside its weights."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_HUB_LIMIT_S = 5.0
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_SMALLEST_SHARE = 0.8
"""Of the model's vocabulary that its tokenizer must know: embeddings are padded, but not by a quarter."""


def find_model(path: str, name: str = "model.path", *, fetch: bool = True) -> Path | None:
    """The folder of a model; None for one of the hub that is not on this machine.

    Args:
        path: a folder, or an id of the Hugging Face hub.
        name: what the path is called in errors.
        fetch: whether the hub may be asked.

    Raises:
        ConfigError: there is no such model, its files are not whole, or the hub does not answer.
    """
    if not path:
        raise ConfigError(f"{name} is empty; give a folder with Hugging Face weights, or a Hugging Face id")
    folder, what = Path(path).expanduser(), f"{name} = {path!r}"
    if folder.is_dir():
        _check_folder(folder, what)
        return folder
    if folder.exists():
        raise ConfigError(f"{what} is a file{what_it_is(folder)}")
    if not _HUB_ID.fullmatch(path) or path.count("/") > 1:
        raise ConfigError(f"{what}: there is no such folder (looked in {Path.cwd()})")
    cached = _cached(path)
    if cached is None and fetch:
        _ask_hub(path, what)
    elif cached is not None and fetch and hub_trouble(path) is not None:
        stay_offline()
    return cached


def load_tokenizer(path: str, name: str = "model.path") -> Any:
    """The tokenizer of a model, which must be that of its vocabulary.

    Raises:
        ConfigError: there is no model or no tokenizer, or they do not belong together.
    """
    folder = find_model(path, name)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder or path))
    except Exception as error:  # every kind of file has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name} = {path!r} has no usable tokenizer: {reason}") from error
    if folder is not None:
        _check_vocabulary(tokenizer, folder, f"{name} = {path!r}")
    return tokenizer


def base_model(path: str) -> str:
    """The model that a path has configuration and tokenizer of: an adapter's (LoRA) base, else itself.

    Raises:
        ConfigError: an adapter does not name its base.
    """
    if not is_adapter(path):
        return path
    try:
        return base_of(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the adapter in {path} cannot be read: {error}") from error


def write_merged(adapter: Path, target: Path) -> None:
    """Write a model with its adapter merged into a folder, with configuration and tokenizer.

    Args:
        adapter: folder with an adapter whose base model is on this machine.
        target: exists.

    Raises:
        ConfigError: the base model is not here, or the adapter is not its.
    """
    from huggingface_hub import save_torch_state_dict

    base = find_model(base_model(str(adapter)), "the adapter's base model", fetch=False)
    if base is None:
        raise ConfigError(
            f"the adapter in {adapter} belongs to {base_of(adapter)!r}, which is not on this machine"
        )
    try:
        save_torch_state_dict(dict(merged_tensors(base, adapter)), target)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the adapter in {adapter} cannot be merged: {error}") from error
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".bin", ".index.json")):
            shutil.copyfile(file, target / file.name)


def trained_format(path: str) -> Literal["code", "hermes", "native"] | None:
    """The format that a warm start taught a model; None for other models."""
    file = Path(path).expanduser() / WARM_START
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        return None
    return found if found in ("code", "hermes", "native") else None


def _check_folder(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{what} holds no config.json{what_it_is(folder)}")
    files = [file for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))]
    if not files:
        raise ConfigError(f"{what} holds no weights (*.safetensors){what_it_is(folder)}")
    for file in files:
        if file.suffix == ".safetensors":
            _check_safetensors(file, what)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted(set(_read_json(index, what)["weight_map"].values()) - {file.name for file in files})
        if missing:
            raise ConfigError(f"{what} lacks {', '.join(missing)}: its download did not end; fetch it again")
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise ConfigError(
            f"{what} holds no tokenizer (tokenizer.json); copy the tokenizer of the model it was made from"
        )


def what_it_is(path: Path) -> str:
    """What a path that is no folder of Hugging Face weights seems to be, and what to do."""
    if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))):
        return ": GGUF cannot be trained; give the model's Hugging Face folder (safetensors)"
    if path.is_file():
        return ": give the folder that holds config.json, weights and tokenizer"
    if (path / "run.json").is_file():
        return f": it is a run; write its weights with `agentrl export {path} FOLDER`, and give that"
    if (path / "adapter_config.json").is_file():
        return f": it is an adapter (LoRA); `agentrl export {path} FOLDER` merges it into its base model"
    if not any(path.iterdir()):
        return ": the folder is empty"
    inside = next((file.parent for file in sorted(path.glob("*/config.json"))), None)
    return f": did you mean {str(inside)!r}?" if inside is not None else ""


def _check_safetensors(file: Path, what: str) -> None:
    """The header says where the last tensor ends: a shorter file is a download that broke off."""
    with file.open("rb") as data:
        size, start = file.stat().st_size, data.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        try:
            header = json.loads(data.read(length)) if length < size else {}
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        except (AttributeError, KeyError, TypeError, ValueError):
            ends = []
    if not ends or 8 + length + max(ends) > size:
        hint = " (a Git LFS pointer; run `git lfs pull`)" if start == b"version " else ""
        raise ConfigError(f"{what}: {file.name} is cut short or damaged{hint}; fetch it again")


def _check_vocabulary(tokenizer: Any, folder: Path, what: str) -> None:
    config = _read_json(folder / "config.json", what)
    size = (config.get("text_config") or config).get("vocab_size")
    known = tokenizer.get_vocab()
    if not isinstance(size, int) or not known:
        return
    largest = max(known.values())
    if largest >= size or len(known) < _SMALLEST_SHARE * size:
        raise ConfigError(
            f"{what}: its tokenizer has {len(known):,} tokens (largest id {largest:,}) and its embeddings "
            f"{size:,}: it is the tokenizer of another model"
        )


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {file.name} cannot be read: {error}") from error


def _cached(hub_id: str) -> Path | None:
    """The folder of a model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _ask_hub(hub_id: str, what: str) -> None:
    """Make sure that the hub has the model."""
    reason = hub_trouble(hub_id)
    if reason is not None:
        raise ConfigError(
            f"{what} is neither a folder here (looked in {Path.cwd()}) nor a model that the Hugging Face hub "
            f"could be asked for: {reason}; `demo` names the small model that ships with agentrl"
        )


def hub_trouble(page: str) -> str | None:
    """Why the hub does not show a page (`owner/model`, `datasets/owner/name`) now; None where it does.

    Asked once and within seconds: the hub's own client tries again for half a minute.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{page}", method="HEAD")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_HUB_LIMIT_S):
            return None
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return f"it answers {error.code}: there is none of that name, or it needs HF_TOKEN"
        return f"it answers {error.code}"
    except (OSError, ValueError) as error:
        return f"{endpoint} cannot be reached ({getattr(error, 'reason', error)})"


def stay_offline() -> None:
    """What was downloaded is used as it is; its client would ask the hub again and again."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
