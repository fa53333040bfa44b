"""The weights of a live model on their way to an engine: whole, under the model's own names, one at a time.

Split weights are gathered a few at a time, so that no rank ever holds all of them; an adapter is merged on
the way. What is known without gathering comes first, as vLLM's trainer-side engines ask for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from agentrl.learner.adapter import named_weights, plain_weights
from agentrl.learner.ranks import local, rows_of, split_by_rows

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""Types by their names in safetensors files."""


class WeightSender(Protocol):
    """One rank's end of the way to engines on other devices."""

    def send(self, label: str) -> None:
        """Gather the present weights with the other ranks, and from the first one send them.

        Raises:
            StallError: who was waited for too long; it may be in the middle of a collective.
            WeightSyncError: they did not arrive.
        """
        ...

    def close(self) -> None:
        """Leave."""
        ...


class WeightLink(Protocol):
    """How engines on other devices are reached; equal ones reach the same engines."""

    @property
    def limit_s(self) -> float:
        """Longest wait for one update."""
        ...

    def join(self, source: WeightSource, rank: int) -> WeightSender:
        """Take part as one of the learner's ranks."""
        ...


class TensorMeta(NamedTuple):
    """A weight before it is gathered."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size of the whole weight."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightSource:
    """The parameters of a live model, a tied one once; may be iterated again after each step.

    Args:
        model: its weights must not change during an iteration. Where they are split, every rank iterates:
            each weight is a collective.
        dtype: in which they are given; split weights are float32 masters, whatever is computed with. None
            keeps their own.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self._model, self._dtype = model, dtype

    def metadata(self) -> list[TensorMeta]:
        """Name, type and whole shape of every weight, in the order of the iteration; gathers nothing."""
        return [
            TensorMeta(name, self._dtype or tensor.dtype, tuple(tensor.shape))
            for name, tensor, _ in named_weights(self._model)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from plain_weights(self._model, dtype=self._dtype)

    @property
    def size(self) -> int:
        """Size of all weights."""
        return sum(one.size for one in self.metadata())

    def write(self, path: Path, *, leads: bool = True) -> None:
        """Write a safetensors file, each weight as soon as it is gathered; it appears at once.

        Args:
            path: its folder exists.
            leads: whether this rank writes; gathering split weights takes all of them.

        Raises:
            OSError: it cannot be written.
        """
        if not leads:
            for _ in self:
                pass
            return
        partial = path.with_suffix(".partial")
        head, places = self._header()
        weights = iter(self)
        try:
            with partial.open("wb") as file:
                file.write(head)
                for name, tensor in weights:
                    file.seek(len(head) + places[name])
                    file.write(_bytes(tensor))
            partial.rename(path)
        except OSError:
            for _ in weights:  # the other ranks gather
                pass
            raise

    @property
    def in_parts(self) -> bool:
        """Whether every rank can write its part of each weight by itself."""
        named = list(named_weights(self._model))
        split = [split_by_rows(tensor) for _, tensor, layer in named if layer is None]
        return len(split) == len(named) and all(split)

    def lay_out(self, path: Path) -> None:
        """Make the safetensors file without the weights, for `write_part`.

        Raises:
            OSError: it cannot be written.
        """
        head, _ = self._header()
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + self.size)

    def write_part(self, path: Path, rank: int, size: int) -> None:
        """Write a rank's rows into a file that was laid out: nothing is gathered.

        Raises:
            OSError: they cannot be written.
        """
        head, places = self._header()
        with path.open("r+b") as file:
            for name, tensor, _ in named_weights(self._model):
                part = local(tensor).to(self._dtype or tensor.dtype)
                row = math.prod(tensor.shape[1:]) * part.itemsize
                file.seek(len(head) + places[name] + rows_of(tensor, rank, size)[0] * row)
                file.write(_bytes(part))

    def _header(self) -> tuple[bytes, dict[str, int]]:
        """The file's beginning, and where each weight starts behind it; wide types first: all are aligned."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        places: dict[str, int] = {}
        end = 0
        for one in sorted(self.metadata(), key=lambda one: -one.dtype.itemsize):
            places[one.name], end = end, end + one.size
            span = [places[one.name], end]
            entries[one.name] = {"dtype": _CODES[one.dtype], "shape": one.shape, "data_offsets": span}
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text, places


def _bytes(tensor: Tensor) -> Any:
    return cast("Any", tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
