"""The numbers of a decoder that its memory depends on, from its `config.json` or from its name.

Nothing is loaded and no hub is asked: the models of the examples and their kin are in a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with gated MLPs (Llama, Qwen, SmolLM)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    """Embedding and head are one matrix."""
    context: int
    """Longest sequence, in tokens."""
    extra: int = 0
    """Weights of a layer besides matrices and two norms: biases (Qwen2), norms of queries and keys (Qwen3)"""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a Hugging Face `config.json`.

        Raises:
            ConfigError: it is not that of a decoder this can count.
        """
        config = config.get("text_config") or config
        if config.get("num_experts") or config.get("num_local_experts"):
            raise ConfigError("config.json is that of a mixture of experts, whose memory is not counted here")
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            key_heads = int(config.get("num_key_value_heads") or heads)
            head_size = int(config.get("head_dim") or hidden // heads)
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                intermediate=int(config.get("intermediate_size") or 4 * hidden),
                heads=heads,
                key_heads=key_heads,
                head_size=head_size,
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                context=int(config.get("max_position_embeddings") or 4096),
                extra=_extra(config, hidden, heads, key_heads, head_size),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"config.json is not that of a decoder: {error!r} is missing or wrong"
            ) from error

    @classmethod
    def load(cls, name: str) -> ModelShape:
        """The shape of the model in a folder, or of a Hugging Face id that the table knows.

        Raises:
            ConfigError: there is neither.
        """
        file = Path(name) / "config.json"
        known = KNOWN.get(_VARIANT.sub("", name))
        if known is not None and not file.exists():
            return known
        try:
            return cls.from_config(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"there is no readable {file}: {error}; give a folder with a config.json, or one of "
                f"{', '.join(KNOWN)}"
            ) from error

    @property
    def per_layer(self) -> int:
        """Weights of one layer."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden + self.extra

    @property
    def embeddings(self) -> int:
        """Weights of embedding, head and last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.layers * self.per_layer + self.embeddings

    def adapter(self, rank: int) -> int:
        """Weights of a low-rank adapter beside every matrix of the layers."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        sides = 2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.intermediate)
        return rank * self.layers * sides

    def key_bytes(self, width: int) -> int:
        """Bytes of keys and values of one token, at `width` bytes a number."""
        return 2 * self.layers * self.key_heads * self.head_size * width


def _extra(config: Mapping[str, Any], hidden: int, heads: int, key_heads: int, head_size: int) -> int:
    kind = str(config.get("model_type", ""))
    if kind.startswith("qwen3"):
        return 2 * head_size
    biases = (heads + 2 * key_heads) * head_size
    if kind.startswith("qwen2"):
        return biases
    return biases + hidden if config.get("attention_bias") else 0


_VARIANT = re.compile(r"-(?:Base|Instruct|Thinking)(?:-\d{4})?$")
"""Ends of names that do not change the shape."""


def _qwen2(
    layers: int, hidden: int, intermediate: int, heads: int, key_heads: int, vocabulary: int, *, tied: bool
):
    size = hidden // heads
    return ModelShape(
        layers,
        hidden,
        intermediate,
        heads,
        key_heads,
        size,
        vocabulary,
        tied,
        32768,
        (heads + 2 * key_heads) * size,
    )


def _qwen3(layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool):
    return ModelShape(layers, hidden, intermediate, heads, 8, 128, 151936, tied, 40960, 2 * 128)


KNOWN: dict[str, ModelShape] = {
    "HuggingFaceTB/SmolLM2-135M": ModelShape(30, 576, 1536, 9, 3, 64, 49152, True, 8192),
    "HuggingFaceTB/SmolLM2-360M": ModelShape(32, 960, 2560, 15, 5, 64, 49152, True, 8192),
    "HuggingFaceTB/SmolLM2-1.7B": ModelShape(24, 2048, 8192, 32, 32, 64, 49152, True, 8192),
    "Qwen/Qwen2.5-0.5B": _qwen2(24, 896, 4864, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(28, 1536, 8960, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-3B": _qwen2(36, 2048, 11008, 16, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(28, 3584, 18944, 28, 4, 152064, tied=False),
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144, 16, tied=True),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32, tied=True),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12288, 32, tied=False),
    "Qwen/Qwen3-14B": _qwen3(40, 5120, 17408, 40, tied=False),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25600, 64, tied=False),
    "meta-llama/Llama-3.2-1B": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, True, 131072),
    "meta-llama/Llama-3.2-3B": ModelShape(28, 3072, 8192, 24, 8, 128, 128256, True, 131072),
    "meta-llama/Llama-3.1-8B": ModelShape(32, 4096, 14336, 32, 8, 128, 128256, False, 131072),
}
"""By Hugging Face id, from the models' public `config.json`."""
