"""Sequences end to end in one row: no padding, and no token sees another sequence.

A model from transformers is told where sequences begin (`cu_seq_lens_q`, positions that start again at 0),
and its attention is computed for each sequence alone: by the variable-length kernel of torch on a GPU in
half precision, by the model's own where it takes these boundaries (FlashAttention), else one
after the other.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from agentrl.learner.logprobs import TokenScorer
from agentrl.learner.products import attend
from agentrl.learner.sequence_split import SequenceSplit

NAME = "agentrl_packed"
"""Under which transformers knows this attention."""
HALF = (torch.float16, torch.bfloat16)


try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None
_PARAMETERS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float | None
) -> Tensor:
    """torch's variable-length kernel, causal, on [T, H, D]; its parameters changed since torch 2.10."""
    options: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in _PARAMETERS else {"is_causal": True}
    )
    shared = query.shape[1] // key.shape[1]
    if "enable_gqa" in _PARAMETERS:
        options["enable_gqa"] = shared > 1
    elif shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return cast("Any", varlen_attn)(
        query, key, value, starts, starts, longest, longest, scale=scale, **options
    )


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether sequences in one row go through one kernel there."""
    return device.type == "cuda" and dtype in HALF and varlen_attn is not None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    lengths: tuple[int, ...] = (),
    split: SequenceSplit | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row, as transformers calls it; or within each of R rows.

    Args:
        module: the attention layer.
        query: [R, H, T, D]; R is 1 where a row has several sequences.
        key: [R, K, T, D], H a multiple of K.
        value: [R, K, T, D].
        attention_mask: not used.
        scaling: of the logits; 1 / sqrt(D) where None.
        cu_seq_lens_q: [R + 1] int32, where sequences begin, and T; None is one sequence a row of any number.
        max_length_q: tokens of the longest sequence.
        lengths: [R] the same on the host, where no kernel takes `cu_seq_lens_q`; empty where one does.
        split: T is this rank's part of a row that other ranks have the rest of; None where it is all.

    Returns:
        [R, T, H, D], and no attention weights.
    """
    if split is not None:
        query, key, value = split.to_heads(query, key, value)
    exact = bool(getattr(module, "attends_in_float32", False))
    found = _attention(query, key, value, scaling, cu_seq_lens_q, max_length_q, lengths, exact)
    return (found if split is None else split.to_tokens(found)), None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    cu_seq_lens_q: Tensor | None,
    max_length_q: int,
    lengths: tuple[int, ...],
    exact: bool,
) -> Tensor:
    """[R, T, H, D] from all tokens of a row."""
    if cu_seq_lens_q is not None and not lengths:
        q, k, v = (item[0].transpose(0, 1) for item in (query, key, value))
        return _varlen(q, k, v, cu_seq_lens_q, max_length_q, scaling)[None]
    parts = lengths or (query.shape[2],)
    results = [
        attend(q, k, v, scaling, exact=exact)
        for q, k, v in zip(query.split(parts, 2), key.split(parts, 2), value.split(parts, 2), strict=True)
    ]
    # A copy of a single one would be kept beside it: 1.8 GB of 45 of Qwen3-0.6B at 16,384 tokens.
    return (results[0] if len(results) == 1 else torch.cat(results, 2)).transpose(1, 2)


def install(scorer: TokenScorer, *, one_kernel: bool, replace: bool = False) -> str:
    """Let a model attend within the sequences of a row, and prove that it does.

    Sliding windows, capped logits, recurrent and convolutional layers look across tokens in their own ways.

    Args:
        scorer: of the model.
        one_kernel: one kernel attends within all sequences.
        replace: the model's own attention even where it takes boundaries.

    Returns:
        Why the model cannot, and then it is as before; empty where it can.
    """
    model = cast("Any", scorer.model)
    own = str(model.config._attn_implementation)
    apart = _score(scorer, ((0, 5), (5, 12)))
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(model.config, "sliding_window", None)):
        return "its layers do not all attend to everything before a token"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if replace or not own.startswith("flash_attention"):
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, packed_attention)
        model.set_attn_implementation(NAME)
    row = _score(scorer, ((0, 12),), lengths=(5, 7), one_kernel=one_kernel)
    difference = float((row - apart).abs().max())
    if difference > (1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1):
        model.set_attn_implementation(own)
        return (
            f"log-probabilities of two sequences in one row differ by {difference:.3g} nats from each alone"
        )
    return ""


def _score(
    scorer: TokenScorer,
    parts: tuple[tuple[int, int], ...],
    lengths: tuple[int, ...] = (),
    *,
    one_kernel: bool = False,
) -> Tensor:
    """Log-probabilities [12] that each part's input gives to fixed tokens."""
    device = next(scorer.parameters()).device
    size = int(cast("Any", scorer.model).config.vocab_size)
    ids = torch.arange(3, 16, device=device) * 7 % size
    found = []
    with torch.no_grad():
        for start, end in parts:
            columns = torch.arange(end - start, device=device)
            more = boundaries(lengths, device, one_kernel=one_kernel) if lengths else {}
            ones = torch.ones(end - start, device=device)
            found.append(
                scorer(
                    ids[None, start:end],
                    torch.zeros_like(columns),
                    columns,
                    ids[start + 1 : end + 1],
                    ones,
                    **more,
                )[0]
            )
    return torch.cat(found)


def boundaries(
    lengths: tuple[int, ...], device: torch.device, *, one_kernel: bool, split: SequenceSplit | None = None
) -> dict[str, Any]:
    """What tells a model where packed sequences begin, under transformers' names.

    Args:
        lengths: [R] tokens of each sequence.
        device: where the model is.
        one_kernel: one kernel attends within all of them; else it is done one by one.
        split: this rank's part of the row, where it has only one.

    Returns:
        Arguments of the model; none for a single sequence that is not split.
    """
    if split is None and len(lengths) == 1:
        return {}  # an ordinary row: the kernel for one sequence is the fastest
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device, non_blocking=True)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    if split is not None:
        positions = split.positions(positions)
    # The kernel for one sequence is the fastest.
    apart = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts} if len(lengths) > 1 else {}
    return {
        **({} if split is None else {"split": split}),
        **apart,
        "position_ids": positions.to(device, non_blocking=True),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "lengths": () if one_kernel else lengths,
    }
