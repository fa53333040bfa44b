import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given
from hypothesis import strategies as st

from agentrl.learner.ranks import Ranks


def test_shares_of_five_items_among_two_ranks() -> None:
    assert Ranks(0, 2).share("abcde") == [("a", True), ("c", True), ("e", True)]
    # Rank 1 has nothing left in the third round: it repeats the last item, which does not count.
    assert Ranks(1, 2).share("abcde") == [("b", True), ("d", True), ("e", False)]
    assert Ranks().share("ab") == [("a", True), ("b", True)]
    assert Ranks(1, 2).share("") == []


@given(st.integers(0, 30), st.integers(1, 8))
def test_every_item_counts_once_and_all_ranks_run_equally_often(items: int, size: int) -> None:
    shares = [Ranks(rank, size).share(range(items)) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(item for share in shares for item, counts in share if counts) == list(range(items))


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, agentrl.learner, agentrl.algorithms; sys.exit('torch' in sys.modules)"
    path = ":".join(entry for entry in sys.path if entry)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0
