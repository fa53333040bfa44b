"""The ranks of a learner: one by default, or several processes that share the weights (FSDP2).

Each rank is given the same batch and derives the same plan from it; a rank runs its share of the
micro-batches. With one rank everything here does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from agentrl.learner.sequence_split import SequenceSplit

T = TypeVar("T")
AT_ONCE = 64 << 20
"""Bytes of split weights that are gathered together."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size` of them; `torch.distributed` is set up where there are several.

    With `split` neighbouring ranks share every row of tokens: they are one group with the same items.
    """

    rank: int = 0
    size: int = 1
    split: SequenceSplit | None = None

    @classmethod
    def of(cls, rank: int, size: int, together: int) -> Ranks:
        """Ranks of which every `together` share rows of tokens; a collective."""
        if together == 1:
            return cls(rank, size)
        group, _ = torch.distributed.new_subgroups(together)
        return cls(rank, size, SequenceSplit(rank % together, together, cast("Any", group)))

    @property
    def groups(self) -> int:
        """How many have items of their own."""
        return self.size // (1 if self.split is None else self.split.size)

    @property
    def leads(self) -> bool:
        """Whether what the group found is counted here; each of its ranks has the same."""
        return self.split is None or self.split.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This rank's items, and whether each counts.

        All ranks get equally many, for every forward pass is a collective: where items run out, a rank
        repeats the last one, and it does not count.
        """
        rounds = -(-len(items) // self.groups)
        group = self.rank * self.groups // self.size
        places = [turn * self.groups + group for turn in range(rounds)]
        return [(items[min(place, len(items) - 1)], place < len(items)) for place in places]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on every rank."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The elementwise largest over all ranks, on every rank."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor

    def shard(self, scorer: nn.Module, compute: torch.dtype, *, offload: bool = False) -> None:
        """Split the weights of a `TokenScorer` among the ranks, layer by layer.

        Weights stay float32 (they are the masters), in host memory where `offload` is set; layers are
        gathered and multiplied as `compute`.
        """
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        kind = next(scorer.parameters()).device.type
        # Inputs keep their types: a temperature in bfloat16 would be another one.
        policy = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        options: dict[str, Any] = {"mesh": init_device_mesh(kind, (self.size,)), "mp_policy": policy}
        if offload and kind != "cpu":
            options["offload_policy"] = CPUOffloadPolicy()
        for layer in cast("Any", scorer).model.base_model.layers:
            fully_shard(layer, **options)
        fully_shard(scorer, reshard_after_forward=False, **options)

    def reshard(self, scorer: nn.Module) -> None:
        """Split weights again that a forward pass without a backward pass left gathered."""
        if self.size > 1:
            cast("Any", scorer).reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; the tensor itself where it is not split."""
    return cast("Any", tensor).to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; a collective where it is split."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    split = cast("Any", tensor)
    # Where the ranks meet: those that keep their parts in host memory cannot gather there by NCCL.
    return split.to(split.device_mesh.device_type).full_tensor()


def whole_each(tensors: Iterable[Tensor], room: int = AT_ONCE) -> Iterator[Tensor]:
    """All of each of some tensors, in their order; those that are split are gathered several at a time.

    A collective costs milliseconds, however little it moves.

    Args:
        tensors: drawn as they are gathered; the same on every rank.
        room: bytes of a collective, which a single tensor may exceed.
    """
    waiting: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if waiting and (tensor.dtype != waiting[0].dtype or size + tensor.nbytes > room):
            yield from _gather(waiting)
            waiting, size = [], 0
        waiting.append(tensor)
        size += tensor.nbytes
    yield from _gather(waiting)


def _gather(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of each of some tensors of one type; one collective where they are all split by rows."""
    if len(tensors) < 2 or not all(split_by_rows(tensor) for tensor in tensors):
        return [whole(tensor) for tensor in tensors]
    mesh = cast("Any", tensors[0]).device_mesh
    size, rank = mesh.size(), mesh.get_local_rank()
    lengths = [[_length(tensor, place, size) for tensor in tensors] for place in range(size)]
    longest = max(map(sum, lengths))
    mine = torch.empty(longest, dtype=tensors[0].dtype, device=mesh.device_type)
    for tensor, piece in zip(tensors, _pieces(mine, lengths[rank]), strict=True):
        piece.copy_(local(tensor).detach().reshape(-1))
    theirs = list(mine.new_empty(size, longest).unbind())
    torch.distributed.all_gather(theirs, mine, group=mesh.get_group())
    parts = [_pieces(flat, lengths[place]) for place, flat in enumerate(theirs)]
    return [torch.cat(pieces).view(tensor.shape) for tensor, *pieces in zip(tensors, *parts, strict=True)]


def _pieces(flat: Tensor, lengths: Sequence[int]) -> Sequence[Tensor]:
    return flat[: sum(lengths)].split(list(lengths))


def split_by_rows(tensor: Tensor) -> bool:
    """Whether each rank has some of a tensor's rows, one after the other."""
    placements = getattr(tensor, "placements", ())
    return len(placements) == 1 and placements[0].is_shard(0)


def _length(tensor: Tensor, rank: int, size: int) -> int:
    """How many numbers of a split tensor a rank has."""
    start, end = rows_of(tensor, rank, size)
    return math.prod((end - start, *tensor.shape[1:]))


def rows_of(tensor: Tensor, rank: int, size: int) -> tuple[int, int]:
    """First row of a split tensor that a rank has, and the one after its last."""
    rows = tensor.shape[0]
    most = -(-rows // size)
    return min(rank * most, rows), min((rank + 1) * most, rows)
