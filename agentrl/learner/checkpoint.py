"""The learner's state in a folder, through `torch.distributed.checkpoint`: bit for bit, and without pickle.

Each rank writes one safetensors file, whose header says where its rows belong in the whole tensors; any
number of ranks reads what any number wrote. Ranks do not talk to each other here. Making the whole checkpoint
appear at once (a rename) is up to the caller, who has more to put beside it. Random state needs no file: the
learner derives every random choice from its seed and its counters.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Size, Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from agentrl.errors import CheckpointError

FORMAT = 2
COUNTERS = "learner.json"
PLACES = "DCP_SHARDING_INFO"
"""Where DCP's reader looks in the header of a file for the offsets of its tensors in the whole ones."""


def file_of(place: Path, rank: int, ranks: int) -> Path:
    """The file of one of several ranks."""
    return place / f"rank_{rank}_of_{ranks}.safetensors"


class Part(dcp.FileSystemWriter):
    """What DCP has a rank write, held until `write` is called; made by `stage`.

    DCP's own writers end with a pickle of metadata, or need all of a rank's file in memory once more.
    """

    def __init__(self, file: Path, counters: Mapping[str, Any] | None, *, copy: bool) -> None:
        super().__init__(file.parent)
        self._file, self._counters, self._copy = file, counters, copy
        self._tensors: dict[str, Tensor] = {}
        self._offsets: dict[str, dict[str, list[int]]] = {}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to prepare."""
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Take the tensors of the plan to host memory."""
        for item in plan.items:
            assert item.tensor_data is not None
            name, tensor = item.index.fqn, cast("Tensor", planner.resolve_data(item)).detach()
            self._tensors[name] = tensor.to("cpu", copy=self._copy).contiguous()
            self._offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        nothing: Future[list[WriteResult]] = Future()
        nothing.set_result([])
        return nothing

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """No metadata besides those of the file."""

    def write(self) -> None:
        """Put it on the disk.

        Raises:
            CheckpointError: it cannot be written.
        """
        with _errors(f"written to {self._file.parent}"):
            save_file(self._tensors, self._file, {PLACES: json.dumps(self._offsets)})
            if self._counters is not None:
                (self._file.parent / COUNTERS).write_text(json.dumps(self._counters, indent=1) + "\n")

    def begin(self) -> concurrent.futures.Future[None]:
        """Put it on the disk from a thread; a disk that hangs keeps no program from ending."""
        written: concurrent.futures.Future[None] = concurrent.futures.Future()

        def write() -> None:
            try:
                written.set_result(self.write())
            except BaseException as error:  # handed to who asks for the result
                written.set_exception(error)

        threading.Thread(target=write, name="agentrl-checkpoint", daemon=True).start()
        return written


def stage(
    place: Path,
    state: Mapping[str, Tensor],
    counters: Mapping[str, Any],
    *,
    rank: int = 0,
    ranks: int = 1,
    copy: bool = True,
) -> Part:
    """Plan how the state of a learner is written, or a rank's part of it.

    Args:
        place: folder of the checkpoint; it need not exist, and holds no tensors yet.
        state: tensors by name; of several ranks those that are split as DTensors, the others are the same.
        counters: what else there is, as JSON.
        rank: which part it is.
        ranks: how many parts there are.
        copy: whether what happens to the tensors from now on stays out of it.

    Raises:
        CheckpointError: the folder cannot be made.
    """
    own = {name: tensor for name, tensor in state.items() if rank == 0 or isinstance(tensor, DTensor)}
    told = {"format": FORMAT, "ranks": ranks, **counters} if rank == 0 else None
    made = Part(file_of(place, rank, ranks), told, copy=copy)
    with _errors(f"written to {place}"):
        place.mkdir(parents=True, exist_ok=True)
        dcp.save(own, storage_writer=made, no_dist=True)
    return made


@dataclass(frozen=True, slots=True)
class Saved:
    """A state that was written: its counters, and the shapes of its tensors."""

    place: Path
    counters: Mapping[str, Any]
    shapes: Mapping[str, Size]

    @classmethod
    def open(cls, place: Path) -> Saved:
        """Look at a state without reading its tensors.

        Raises:
            CheckpointError: a file is missing, damaged, one too many, or of another format.
        """
        with _errors(f"read from {place}"):
            counters = _counters(place)
            ranks = int(counters["ranks"])
            wanted = {file_of(place, rank, ranks) for rank in range(ranks)}
            for path in sorted(wanted.symmetric_difference(place.glob("*.safetensors"))):
                what = "is missing" if path in wanted else f"is not of its {ranks} ranks"
                raise CheckpointError(f"the learner's state cannot be read from {place}: {path.name} {what}")
            found = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
            tensors = cast("Mapping[str, TensorStorageMetadata]", found)
            for name, whole in tensors.items():
                rows = {
                    chunk.offsets: math.prod(chunk.sizes) for chunk in whole.chunks if 0 not in chunk.sizes
                }
                if sum(rows.values()) != math.prod(whole.size):
                    raise CheckpointError(f"the learner's state in {place} has not all rows of {name}")
            return cls(place, counters, {name: whole.size for name, whole in tensors.items()})

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the state into tensors of the same names and shapes; of split ones, this rank's rows.

        Raises:
            CheckpointError: it cannot be read; some tensors may have been copied.
        """
        with _errors(f"read from {self.place}"):
            reader = HuggingFaceStorageReader(str(self.place))
            dcp.load(dict(tensors), storage_reader=reader, no_dist=True)


def _counters(place: Path) -> dict[str, Any]:
    """Counters of the state in a folder; those of format 1 lay in the folders of ranks too."""
    old = place / "rank_0" / COUNTERS
    counters = json.loads((old if old.exists() else place / COUNTERS).read_text())
    if counters.get("format") != FORMAT:
        raise CheckpointError(
            f"the learner's state in {place} has format {counters.get('format')!r}, not {FORMAT}: only the "
            "version of agentrl that wrote it can read it"
        )
    return counters


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Tell what the disk and DCP refuse as `CheckpointError`."""
    try:
        with warnings.catch_warnings():
            # That each rank is by itself, which is meant.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointError:
        raise
    except (OSError, ValueError, LookupError, SafetensorError, dcp.CheckpointException) as error:
        if isinstance(error, dcp.CheckpointException):  # a BaseException, with a traceback in its text
            error = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"the learner's state cannot be {what}: {error}") from error
