"""The learner's state in a folder: weights, optimizer, counters. Bit for bit, and without pickle.

Of several ranks each writes its part into a folder of its own, `rank_0`, `rank_1`, ...; any number of ranks
reads what any number wrote. Making the whole checkpoint appear at once (a rename) is up to the caller, who
has more to put beside it. Random state needs no file: the learner derives every random choice from its seed
and its counters.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentrl.errors import CheckpointError

FORMAT = 1
WEIGHTS, OPTIMIZER, COUNTERS = "learner_weights.safetensors", "optimizer.safetensors", "learner.json"


def write(
    place: Path,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    counters: Mapping[str, Any],
    *,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Write the state of a learner, or a rank's part of it.

    Args:
        place: folder of the checkpoint; it need not exist.
        weights: by name; of several ranks, this one's rows.
        optimizer: its tensors by name, likewise.
        counters: what else there is, as JSON.
        rank: which part it is.
        ranks: how many parts there are.

    Raises:
        CheckpointError: it cannot be written.
    """
    folder = place if ranks == 1 else place / f"rank_{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if ranks > 1:
            (place / COUNTERS).unlink(missing_ok=True)  # of one rank, which would be read in place of these
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in optimizer.items()}, folder / OPTIMIZER
        )
        told = {"format": FORMAT, "ranks": ranks, **counters}
        (folder / COUNTERS).write_text(json.dumps(told, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the learner's state cannot be written to {folder}: {error}") from error


def read(
    place: Path, rank: int = 0, ranks: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """A rank's part of weights and optimizer tensors, and the counters, that any number of ranks wrote.

    Args:
        place: folder of the checkpoint.
        rank: whose part.
        ranks: how many read it: the rows of a tensor are dealt out as FSDP2 splits them.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format.
    """
    whole = (place / COUNTERS).exists()
    try:
        counters = json.loads((place / ("" if whole else "rank_0") / COUNTERS).read_text())
        if counters.get("format") != FORMAT:
            raise CheckpointError(f"the state in {place} has format {counters.get('format')!r}, not {FORMAT}")
        parts = [place] if whole else [place / f"rank_{part}" for part in range(counters["ranks"])]
        if len(parts) == ranks:
            return load_file(parts[rank] / WEIGHTS), load_file(parts[rank] / OPTIMIZER), counters
        weights, optimizer = (
            _dealt([part / name for part in parts], rank, ranks) for name in (WEIGHTS, OPTIMIZER)
        )
        return weights, optimizer, counters
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the learner's state cannot be read from {place}: {error}") from error


def _dealt(files: Sequence[Path], rank: int, ranks: int) -> dict[str, Tensor]:
    """The tensors of a rank among another number of ranks than wrote the files."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        return {name: _rows(opened, name, rank, ranks) for name in opened[0].keys()}  # noqa: SIM118


def _rows(files: Sequence[Any], name: str, rank: int, ranks: int) -> Tensor:
    """Rows of a tensor whose rows lie in files one after the other; a number is in each of them."""
    parts = [file.get_slice(name) for file in files]
    if not parts[0].get_shape():
        return files[0].get_tensor(name)
    counts = [part.get_shape()[0] for part in parts]
    each = -(-sum(counts) // ranks)
    found, begin = [files[0].get_tensor(name)[:0]], 0
    for part, count in zip(parts, counts, strict=True):
        first, last = max(rank * each - begin, 0), min((rank + 1) * each - begin, count)
        if first < last:
            found.append(part[first:last])
        begin += count
    return torch.cat(found)
