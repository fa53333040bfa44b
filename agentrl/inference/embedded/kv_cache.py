"""Keys and values of all sessions in one block of memory, one row per session.

Rows that are decoding are always the first ones, so that a step reads a slice and never gathers.
A row moves by copying; how long each row is, and who owns it, is the decode loop's business.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache

from agentrl.errors import PolicyUnavailable

ATTENTION = "agentrl_rows"
"""Name under which the attention of this module is registered with transformers."""

_FIRST_CAPACITY = 256
_ROUNDING = 16
"""Cells attended over are a multiple of this: shapes repeat for a while, and little is read in vain."""


class RowCache(Cache):
    """Keys and values [layers, 2, rows, kv_heads, capacity + 1, head_dim].

    The last cell of a row is where padding is written; nothing ever reads it. Capacity doubles when
    a row needs more, up to `context` tokens.

    Args:
        rows: sequences held at once.
        context: longest sequence, in tokens.
        fixed: allocate the whole context at once and attend over all of it, so that shapes never change.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        rows: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
        fixed: bool = False,
    ) -> None:
        super().__init__(layers=[])
        self._context = context
        self._fixed = fixed
        self._capacity = context if fixed else min(context, _FIRST_CAPACITY)
        self._shape = (layers, 2, rows, kv_heads, head_dim)
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}
        self._store = self._allocate(self._capacity)
        self._cells = torch.empty(0, dtype=torch.long, device=device)
        self._rows = slice(0, 0)
        self._attended = 0

    def _allocate(self, capacity: int) -> Tensor:
        layers, two, rows, kv_heads, head_dim = self._shape
        self._check_memory(math.prod(self._shape) * (capacity + 1) * self._options["dtype"].itemsize)
        # A tensor made in inference mode can be written to in that mode only, and rows move between steps.
        with torch.inference_mode(False):
            # Zeros, not whatever was there: a masked cell has weight 0, and 0 times NaN is NaN.
            return torch.zeros((layers, two, rows, kv_heads, capacity + 1, head_dim), **self._options)

    def _check_memory(self, needed: int) -> None:
        """Raise before the machine runs out of memory, which would end more than this engine."""
        free = _free_bytes(self._options["device"])
        if free is not None and needed > free:
            raise PolicyUnavailable(
                f"keys and values of {self._shape[2]} sequences of up to {self._context} tokens need "
                f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; lower `engine.slots` or "
                "`engine.context_tokens`"
            )

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._store.numel() * self._store.element_size()

    def reserve(self, tokens: int) -> None:
        """Make room for rows of that many tokens."""
        if tokens <= self._capacity:
            return
        capacity = min(self._context, max(tokens, 2 * self._capacity))
        store = self._allocate(capacity)
        store[:, :, :, :, : self._capacity] = self._store[:, :, :, :, :-1]
        self._store, self._capacity = store, capacity

    def attended(self, longest: int) -> int:
        """How many cells a step over rows of at most that many tokens attends over."""
        if self._fixed:
            return self._capacity
        return min(self._capacity, -(-longest // _ROUNDING) * _ROUNDING)

    def point_at(self, rows: slice, positions: Tensor, attended: int) -> None:
        """Say where the next forward pass writes and reads.

        Args:
            rows: of the batch, in order.
            positions: [B, Q] cells to write; negative ones are padding.
            attended: cells read of every row.
        """
        _, _, _, kv_heads, _ = self._shape
        per_head = self._capacity + 1
        device = self._options["device"]
        first = torch.arange(rows.start, rows.stop, device=device)[:, None, None] * kv_heads
        heads = torch.arange(kv_heads, device=device)[None, :, None]
        cells = torch.where(positions < 0, self._capacity, positions)[:, None, :]
        self._cells = ((first + heads) * per_head + cells).reshape(-1)
        self._rows, self._attended = rows, attended

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, Q, D] of one layer; return all attended ones [B, H, K, D]."""
        layer = self._store[layer_idx]
        head_dim = self._shape[4]
        for store, states in ((layer[0], key_states), (layer[1], value_states)):
            store.view(-1, head_dim).index_copy_(0, self._cells, states.reshape(-1, head_dim))
        read = layer[:, self._rows, :, : self._attended]
        return read[0], read[1]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first cells of one row over another."""
        self._store[:, :, target, :, :tokens] = self._store[:, :, source, :, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first cells of two rows."""
        kept = self._store[:, :, one, :, :tokens].clone()
        self.move(other, one, tokens)
        self._store[:, :, other, :, :tokens] = kept

    def clear(self, row: int) -> None:
        """Zero a row; needed only after something that is not finite was written to it."""
        self._store[:, :, row] = 0


def _free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def additive_mask(ends: Tensor, queries: int, attended: int, groups: int, dtype: torch.dtype) -> Tensor:
    """Mask for `grouped_attention`, 0 where a query may look and -inf where not.

    Queries stand at the end of their row: query j of Q sees cells up to ends - Q + j. Padding on the
    left sees cell 0, because a query that sees nothing is NaN.

    Args:
        ends: [B] length of each row after this pass.
        queries: Q, queries per row, padding included.
        attended: K, cells read of each row.
        groups: G, query heads per key head.

    Returns:
        [B, 1, G * Q or 1, K]
    """
    cells = torch.arange(attended, device=ends.device)
    last = ends[:, None] - queries + torch.arange(queries, device=ends.device)[None, :]
    hidden = cells[None, None, :] > last.clamp_(min=0)[:, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill_(hidden, float("-inf"))
    if queries > 1 and groups > 1:
        mask = mask.repeat(1, groups, 1)
    return mask[:, None]


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention whose key heads are shared by groups of query heads, without repeating the keys.

    The G query heads of one key head are taken as G times as many queries, which is the same sum.

    Args:
        query: [B, H * G, Q, D]; key, value: [B, H, K, D].
        attention_mask: from `additive_mask`.

    Returns:
        [B, Q, H * G, D] and None.
    """
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(batch, kv_heads, heads // kv_heads * queries, dim)
    out = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(batch, heads, queries, dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)
