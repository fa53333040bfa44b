"""States of learners that are written by some ranks and read by others."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from agentrl.errors import CheckpointError
from agentrl.learner import checkpoint
from agentrl.learner.checkpoint import Saved
from agentrl.learner.ranks import local

STEP = torch.tensor(3.0)


@contextlib.contextmanager
def one_of(ranks: int, rank: int) -> Iterator[DeviceMesh]:
    """This process as one of several that never talk to each other."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,))
    finally:
        torch.distributed.destroy_process_group()


def split(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """This rank's rows as FSDP2 has them: `torch.chunk`, and what is left over is empty."""
    chunks, rank = torch.chunk(tensor, mesh.size()), mesh.get_rank()
    own = chunks[rank] if rank < len(chunks) else tensor[:0]
    return DTensor.from_local(own, mesh, [Shard(0)], shape=tensor.shape, stride=tensor.stride())


def save(folder: Path, tensors: Mapping[str, torch.Tensor], ranks: int) -> None:
    for rank in range(ranks):
        with one_of(ranks, rank) as mesh:
            own = {name: split(tensor, mesh) for name, tensor in tensors.items()}
            state = own | {"step": STEP}
            checkpoint.stage(folder, state, {"batches": 5}, rank=rank, ranks=ranks).write()


def read(folder: Path, rank: int = 0, ranks: int = 1) -> dict[str, torch.Tensor]:
    """A rank's rows."""
    saved = Saved.open(folder)
    with one_of(ranks, rank) as mesh:
        empty = {
            name: split(
                torch.full(shape, torch.nan, dtype=torch.bfloat16 if name == "matrix" else None), mesh
            )
            for name, shape in saved.shapes.items()
            if name != "step"
        }
        tensors = empty | {"step": torch.zeros(())}
        saved.read_into(tensors)
        return {name: local(tensor) for name, tensor in tensors.items()}


def test_five_rows_of_two_ranks_read_by_three(tmp_path: Path) -> None:
    # Two ranks have 3 and 2 rows; of three, the first two have 2 and the last 1.
    save(tmp_path, {"a": torch.arange(5.0)}, 2)
    assert [read(tmp_path, rank, 3)["a"].tolist() for rank in range(3)] == [[0, 1], [2, 3], [4]]
    found = read(tmp_path)
    assert found["a"].tolist() == [0, 1, 2, 3, 4]
    assert found["step"].item() == 3.0
    assert {**Saved.open(tmp_path).counters} == {"format": 2, "ranks": 2, "batches": 5}


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 9), before=st.integers(1, 5), after=st.integers(1, 5))
def test_any_number_of_ranks_reads_what_any_number_wrote(
    tmp_path_factory: pytest.TempPathFactory, rows: int, before: int, after: int
) -> None:
    folder = tmp_path_factory.mktemp("state")
    tensors = {"matrix": torch.randn(rows, 3, dtype=torch.bfloat16), "row": torch.randn(2)}
    save(folder, tensors, before)
    parts = [read(folder, rank, after) for rank in range(after)]
    for name, tensor in tensors.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
        chunks = torch.chunk(tensor, after)
        for rank, part in enumerate(parts):
            assert torch.equal(part[name], chunks[rank] if rank < len(chunks) else tensor[:0])
    assert all(torch.equal(part["step"], STEP) for part in parts)


def test_a_part_that_is_missing_or_one_too_many_is_named(tmp_path: Path) -> None:
    save(tmp_path, {"a": torch.arange(4.0)}, 3)
    parts = [checkpoint.file_of(tmp_path, rank, 3) for rank in range(3)]
    middle = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"rank_1_of_3\.safetensors is missing"):
        Saved.open(tmp_path)
    # A file of another state under its name has rows of its own, and not those.
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(CheckpointError, match="has not all rows of a"):
        Saved.open(tmp_path)
    parts[1].write_bytes(middle)
    checkpoint.file_of(tmp_path, 0, 1).write_bytes(middle)
    with pytest.raises(CheckpointError, match=r"rank_0_of_1\.safetensors is not of its 3 ranks"):
        Saved.open(tmp_path)
    checkpoint.file_of(tmp_path, 0, 1).unlink()
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"state cannot be read from {tmp_path}: "):
        Saved.open(tmp_path)


def test_a_state_of_another_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, {"a": torch.arange(4.0)}, 1)
    told = json.loads((tmp_path / checkpoint.COUNTERS).read_text())
    (tmp_path / checkpoint.COUNTERS).write_text(json.dumps(told | {"format": 1}))
    with pytest.raises(CheckpointError, match="has format 1, not 2: only the version of agentrl that"):
        Saved.open(tmp_path)
    # Format 1 of several ranks had a folder for each.
    (tmp_path / "rank_0").mkdir()
    (tmp_path / checkpoint.COUNTERS).rename(tmp_path / "rank_0" / checkpoint.COUNTERS)
    with pytest.raises(CheckpointError, match="has format 1, not 2"):
        Saved.open(tmp_path)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> object:
        return os.mkdir, (self.folder,)


def test_reading_executes_nothing_and_writing_pickles_nothing(tmp_path: Path) -> None:
    place, blown = tmp_path / "state", tmp_path / "blown"
    save(place, {"a": torch.arange(4.0)}, 2)
    assert sorted(path.name for path in place.iterdir()) == [
        "learner.json",
        "rank_0_of_2.safetensors",
        "rank_1_of_2.safetensors",
    ]
    for name in (".metadata", "__0_.metadata", "__0_0.distcp"):  # what DCP's own reader would unpickle
        (place / name).write_bytes(pickle.dumps(Bomb(blown)))
    assert read(place)["a"].tolist() == [0, 1, 2, 3]
    assert not blown.exists()
    pickle.loads(pickle.dumps(Bomb(blown)))
    assert blown.exists()
