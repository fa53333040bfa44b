"""One row of tokens over a group of ranks, for sequences that one cannot hold (Ulysses, arXiv 2309.14509).

Every rank has its part of the row everywhere but in attention. There the group exchanges: each rank gets all
tokens of some heads, attends as if it were alone, and gives every rank its tokens back. What was said of the
targets is then gathered, so that each rank of the group computes the whole loss and learns from its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from agentrl.errors import ConfigError
from agentrl.learner.batch import MicroBatch
from agentrl.learner.logprobs import Scores


class _Exchange(torch.autograd.Function):
    """[k, ...]: the part at j goes to rank j; what rank j sent is at j. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradients[0], ctx.group), None


def _exchange(parts: Tensor, group: ProcessGroup) -> Tensor:
    parts = parts.contiguous()
    result = torch.empty_like(parts)
    torch.distributed.all_to_all_single(result, parts, group=group)
    return result


class _Gather(torch.autograd.Function):
    """[n, ...] of this rank to [sum of n, ...] of all; the gradient is that of this rank's rows.

    Every rank computes the same from the whole, so the others' gradients of these rows are not added.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: tuple[int, ...], rank: int, group: ProcessGroup) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0].split(ctx.sizes)[ctx.rank], None, None, None


@dataclass(frozen=True, slots=True)
class SequenceSplit:
    """This rank's part of every row.

    Args:
        rank: in the group.
        size: k ranks of the group.
        group: that exchanges.
    """

    rank: int
    size: int
    group: ProcessGroup

    def check(self, heads: int, name: str) -> None:
        """Make sure that the heads of a model can be shared out.

        Raises:
            ConfigError: k does not divide them.
        """
        if heads % self.size:
            fits = [str(count) for count in range(2, heads + 1) if heads % count == 0]
            raise ConfigError(
                f"learner.sequence_parallel = {self.size} does not divide the {heads} attention heads of "
                f"{name!r}; what does: {', '.join(fits) or 'only 1'}"
            )

    def part(self, micro: MicroBatch) -> tuple[MicroBatch, tuple[int, ...]]:
        """This rank's part of a packed row, and how many targets each rank of the group has.

        The row is filled up to a multiple of k by a sequence of its own. Targets keep their order.
        """
        row = micro.input_ids[0]
        more = -len(row) % self.size
        each = (len(row) + more) // self.size
        owner = micro.columns // each
        own = owner == self.rank
        ids = torch.nn.functional.pad(torch.from_numpy(row), (0, more)).numpy()
        part = MicroBatch(
            sequences=micro.sequences,
            counts=micro.counts,
            input_ids=ids[None, self.rank * each : (self.rank + 1) * each],
            rows=micro.rows[own],
            columns=micro.columns[own] - self.rank * each,
            targets=micro.targets[own],
            behaviour=micro.behaviour[own],
            temperature=micro.temperature[own],
            top_ids=micro.top_ids[own],
            top_logprobs=micro.top_logprobs[own],
            lengths=(*micro.lengths, more) if more else micro.lengths,
        )
        return part, tuple(int((owner == rank).sum()) for rank in range(self.size))

    def positions(self, positions: Tensor) -> Tensor:
        """This rank's part of [1, T] positions."""
        return positions.chunk(self.size, 1)[self.rank]

    def gather(self, scores: Scores, sizes: Sequence[int]) -> Scores:
        """Scores of all targets of the row, on every rank of the group."""
        found = [
            _Gather.apply(item, tuple(sizes), self.rank, self.group)
            if item.ndim == 1 or item.shape[1]
            else item.new_zeros((sum(sizes), 0))
            for item in scores
        ]
        return Scores(*cast("list[Tensor]", found))

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, H, T / k, D], twice [1, K, T / k, D] to [1, H / k, T, D], twice [1, K / k, T, D]."""
        size = self.size
        if key.shape[1] % size:  # too few to share out: each goes where its queries are
            shared = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        heads = [item.shape[1] // size for item in (query, key, value)]
        # One exchange for all three: ranks that went back through them in another order would wait forever.
        parts = [item[0].unflatten(0, (size, -1)) for item in (query, key, value)]
        mixed = cast("Tensor", _Exchange.apply(torch.cat(parts, 1), self.group))
        # [k, heads, T / k, D] to [1, heads, T, D]
        whole = mixed.transpose(0, 1).flatten(1, 2)[None]
        query, key, value = whole.split(heads, 1)
        return query, key, value

    def to_tokens(self, attended: Tensor) -> Tensor:
        """[1, T, H / k, D] to [1, T / k, H, D]."""
        parts = attended[0].unflatten(0, (self.size, -1))
        mixed = cast("Tensor", _Exchange.apply(parts, self.group))
        # [k, T / k, H / k, D], heads of rank j at j
        return mixed.transpose(0, 1).flatten(1, 2)[None]
