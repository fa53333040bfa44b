"""States of learners that are written by some ranks and read by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import CheckpointError
from agentrl.learner import checkpoint


def save(folder: Path, tensors: dict[str, torch.Tensor], ranks: int) -> None:
    """Split rows as FSDP2 does: `torch.chunk`, and what is left over is empty."""
    for rank in range(ranks):
        own = {}
        for name, tensor in tensors.items():
            chunks = torch.chunk(tensor, ranks) if tensor.ndim else ()
            own[name] = tensor if not tensor.ndim else chunks[rank] if rank < len(chunks) else tensor[:0]
        checkpoint.write(folder, own, {"step:a": torch.tensor(3.0)}, {"batches": 5}, rank=rank, ranks=ranks)


def test_five_rows_of_two_ranks_read_by_three(tmp_path: Path) -> None:
    # Two ranks have 3 and 2 rows; of three, the first two have 2 and the last 1.
    save(tmp_path, {"a": torch.arange(5.0)}, 2)
    assert [checkpoint.read(tmp_path, rank, 3)[0]["a"].tolist() for rank in range(3)] == [[0, 1], [2, 3], [4]]
    weights, optimizer, counters = checkpoint.read(tmp_path)
    assert weights["a"].tolist() == [0, 1, 2, 3, 4]
    assert optimizer["step:a"].item() == 3.0
    assert (counters["batches"], counters["ranks"]) == (5, 2)


def test_a_folder_that_is_written_again_by_others_has_nothing_of_those_before(tmp_path: Path) -> None:
    for value, ranks in enumerate((4, 2, 1, 2)):
        save(tmp_path, {"a": torch.full((4,), float(value))}, ranks)
        assert checkpoint.read(tmp_path)[0]["a"].tolist() == [value] * 4


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 9), before=st.integers(1, 5), after=st.integers(1, 5))
def test_any_number_of_ranks_reads_what_any_number_wrote(
    tmp_path_factory: pytest.TempPathFactory, rows: int, before: int, after: int
) -> None:
    folder = tmp_path_factory.mktemp("state")
    tensors = {"matrix": torch.randn(rows, 3, dtype=torch.bfloat16), "row": torch.randn(2)}
    save(folder, tensors, before)
    parts = [checkpoint.read(folder, rank, after)[0] for rank in range(after)]
    for name, tensor in tensors.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
        chunks = torch.chunk(tensor, after)
        for rank, part in enumerate(parts):
            assert torch.equal(part[name], chunks[rank] if rank < len(chunks) else tensor[:0])


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    save(tmp_path, {"a": torch.arange(4.0)}, 2)
    (tmp_path / "rank_1" / checkpoint.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read from .*rank_1"):
        checkpoint.read(tmp_path)
    told = json.loads((tmp_path / "rank_0" / checkpoint.COUNTERS).read_text())
    (tmp_path / "rank_0" / checkpoint.COUNTERS).write_text(json.dumps(told | {"format": 0}))
    with pytest.raises(CheckpointError, match="has format 0, not 1"):
        checkpoint.read(tmp_path)
