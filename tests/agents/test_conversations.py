"""Examples of several conversations in an episode are trained; `tests/agentrl/test_segments.py` plays them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl_envs import load_env
from tests.agents.training import two_steps
from tests.needed import needed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
needed("torch", "the learner needs torch (pip install agentrl[train])")
EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"


def trained(folder: Path, name: str, *flags: str) -> list[dict[str, Any]]:
    path = str(EXAMPLES / name)
    rows = [{**row, "id": f"{row['id']}{n}"} for row in load_env(path).example_rows for n in range(4)]
    return two_steps(folder, path, rows=rows, flags=flags)


def test_a_game_of_two_agents_is_trained_for_two_steps(tmp_path: Path) -> None:
    steps = trained(tmp_path, "two_agent_game.py", "--estimator.kind=agents")
    assert [row["segments_mean"] for row in steps] == [2.0, 2.0]


def test_a_researcher_that_compacts_is_trained_for_two_steps(tmp_path: Path) -> None:
    """Whether it comes to compaction is up to the model, which is small."""
    trained(tmp_path, "compacting_researcher.py", "--rollout.compact_at=0.25")
