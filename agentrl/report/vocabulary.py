"""Texts of token ids, read from a `tokenizer.json`: no tokenizer library is needed to look at a run."""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Bytes of each token id.

    Args:
        path: `tokenizer.json`.

    Raises:
        ValueError: it is not one, or of an unknown form.
    """

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        try:
            vocab = data["model"]["vocab"]
            pairs = (
                vocab.items() if isinstance(vocab, dict) else ((row[0], at) for at, row in enumerate(vocab))
            )
            self._byte_level = '"ByteLevel"' in json.dumps([data.get("decoder"), data.get("pre_tokenizer")])
            self._texts: dict[int, str] = {number: text for text, number in pairs}
            self.special: dict[int, str] = {
                item["id"]: item["content"] for item in data.get("added_tokens") or ()
            }
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} is no tokenizer.json of a known form") from error
        self._bytes = _byte_table()

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; an unknown id is shown as its number."""
        if token in self.special:
            return self.special[token].encode()
        text = self._texts.get(token)
        if text is None:
            return f"<{token}>".encode()
        if self._byte_level:
            return bytes(byte for char in text for byte in self._bytes.get(char, char.encode()))
        if found := _BYTE.fullmatch(text):
            return bytes([int(found[1], 16)])
        return text.replace("▁", " ").encode(errors="replace")

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """The text of each of T tokens; a character of several tokens stands at its last one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = [decoder.decode(self.bytes_of(int(token))) for token in tokens]
        if texts and (rest := decoder.decode(b"", final=True)):
            texts[-1] += rest
        return texts


@lru_cache(1)
def _byte_table() -> dict[str, bytes]:
    """How byte-level vocabularies write bytes (GPT-2): printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): bytes([byte]) for byte in plain}
    return table | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


def find_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a run: of its weights, else of the model it began with, else None."""
    for path in _candidates(folder):
        try:
            return Vocabulary(path)
        except (OSError, ValueError):
            continue
    return None


def _candidates(folder: Path) -> list[Path]:
    found = sorted(folder.glob("weights/step_*/tokenizer.json"), reverse=True)[:1]
    try:
        settings: dict[str, Any] = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        model = str(settings["model"]["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return found
    if model == "demo":
        return [*found, Path(str(files("agentrl.demo") / "model" / "tokenizer.json"))]
    found += [Path(model).expanduser() / "tokenizer.json", folder.parent.parent / model / "tokenizer.json"]
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return [*found, *home.glob(f"hub/models--{model.replace('/', '--')}/snapshots/*/tokenizer.json")]
