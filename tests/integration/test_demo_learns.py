"""The demo as a user runs it: it learns to write Python, and its controls do not.

The whole run takes about a minute on two cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demo trains (pip install agentrl[train])")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_demo(tmp_path: Path, *arguments: str) -> dict:
    """The summary of `agentrl demo`."""
    command = [
        sys.executable,
        "-m",
        "agentrl.cli.main",
        "demo",
        f"--run.directory={tmp_path}",
        "--name",
        "demo",
    ]
    paths = [str(ROOT), str(ROOT / "envs"), str(ROOT / "sandbox")]
    done = subprocess.run(
        [*command, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "demo" / "report.html").stat().st_size > 20_000
    return json.loads((tmp_path / "demo" / "summary.json").read_text())


def test_it_learns_to_use_python(tmp_path: Path):
    # Fails when the learner's advantages change sign, or tool output is learned from.
    summary = run_demo(tmp_path)
    assert summary["reward_first"] <= 0.4
    assert summary["reward_last"] >= 0.9
    assert summary["visits_per_prompt"] >= 8
    assert summary["python_calls"] > 1000
    assert summary["policy_versions"] == 64
    assert summary["ledger"]["learned"] == summary["episodes"] == 4096


SHORT = "--run.steps=24"
"""By then the demo is above .7."""


def test_without_a_learning_rate_nothing_changes(tmp_path: Path):
    summary = run_demo(tmp_path, "--learner.learning_rate=0", SHORT)
    assert abs(summary["reward_last"] - summary["reward_first"]) <= 0.08


def test_shuffled_rewards_teach_nothing(tmp_path: Path):
    summary = run_demo(tmp_path, "--shuffle-rewards", SHORT)
    assert summary["reward_last"] - summary["reward_first"] <= 0.08


def test_without_a_working_interpreter_there_is_no_reward(tmp_path: Path):
    # Fails when the answer reaches the model by another way than the interpreter's output.
    summary = run_demo(tmp_path, "--sandbox.backend=broken", SHORT)
    assert summary["reward_last"] <= 0.15
