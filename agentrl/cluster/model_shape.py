"""The numbers of a decoder that its memory depends on, from its `config.json`.

Nothing is loaded and no hub is asked. `model_configs.json` has what is read of the `config.json` of models
that the examples name, so that their memory can be planned before they are here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError
from agentrl.weights.model_files import base_model, find_model


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
    biases: int = 0
    """Of a layer's attention (Qwen2)."""
    head_norms: bool = False
    """Queries and keys are normalised (Qwen3)."""

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
                # Files of older versions leave out what is transformers' default for any model.
                tied=bool(config.get("tie_word_embeddings", True)),
                context=int(config.get("max_position_embeddings") or 4096),
                biases=_biases(config, hidden, heads, key_heads, head_size),
                head_norms=str(config.get("model_type", "")).startswith("qwen3"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"config.json is not that of a decoder: {error!r} is missing or wrong"
            ) from error

    @classmethod
    def load(cls, name: str) -> ModelShape:
        """The shape of a model that is on this machine, or that the examples name.

        Args:
            name: its folder, or that of an adapter, or a Hugging Face id.

        Raises:
            ConfigError: there is neither.
        """
        name = base_model(name)
        folder = Path(name) if Path(name).is_dir() else find_model(name, fetch=False)
        file = folder / "config.json" if folder is not None else None
        if file is not None:
            try:
                return cls.from_config(json.loads(file.read_text()))
            except (OSError, ValueError) as error:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(f"{file} cannot be read: {error}") from error
        known = known_shapes()
        shape = known.get(_VARIANT.sub("", name))
        if shape is None:
            raise ConfigError(
                f"the memory of {name!r} cannot be planned: its config.json, which says how large it is, "
                "is not on this machine. Give a folder that holds it, or download the model first. Known all "
                f"the same: {', '.join(known)}"
            )
        return shape

    @property
    def per_layer(self) -> int:
        """Weights of one layer."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden + self.extra

    @property
    def extra(self) -> int:
        """Weights of a layer besides its matrices and two norms."""
        return self.biases + (2 * self.head_size if self.head_norms else 0)

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


def _biases(config: Mapping[str, Any], hidden: int, heads: int, key_heads: int, head_size: int) -> int:
    biases = (heads + 2 * key_heads) * head_size
    if str(config.get("model_type", "")) == "qwen2":
        return biases
    return biases + hidden if config.get("attention_bias") else 0


_VARIANT = re.compile(r"-(?:Base|Instruct|Thinking)(?:-\d{4})?$")
"""Ends of names that do not change the shape."""


def known_shapes() -> dict[str, ModelShape]:
    """Of the models that the examples name, by Hugging Face id, for whoever plans before a download."""
    rows = json.loads((Path(__file__).parent / "model_configs.json").read_text())
    return {name: ModelShape.from_config(row) for name, row in rows.items()}
