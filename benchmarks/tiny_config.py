"""Configurations of tiny models of any architecture."""

from __future__ import annotations

from typing import Any


def tiny_config(
    kind: str = "qwen3",
    *,
    vocabulary: int = 61,
    hidden: int = 32,
    inner: int = 48,
    layers: int = 2,
    heads: int = 2,
    key_heads: int = 1,
    head: int = 16,
    context: int = 256,
    **more: Any,
) -> Any:
    """The configuration of a transformers model; `inner` is the width of its MLP, `head` that of a head."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head,
        max_position_embeddings=context,
        **more,
    )
