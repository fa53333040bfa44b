"""A run whose learner's process dies goes on from its checkpoint by itself."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from agentrl.config import bundled
from agentrl.config.loading import load_settings
from agentrl.errors import LearnerLost
from agentrl.learner.process import LearnerProcesses
from agentrl.storage.metrics import read_metrics
from agentrl.training.parts import Options
from agentrl.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FLAGS = (
    f"--model.path={bundled.MODEL}",
    "--run.deterministic=true",
    "--run.steps=4",
    "--stream.batch=8",
    "--learner.mini_batch=8",
    "--learner.place=process",
    "--engine.slots=8",
    "--eval.data=",
    "--checkpoint.every=2",
)


def play(folder: Path, *kills: int, flags: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[Any]]:
    """A run whose learner is killed right after each of these versions, once; summary and steps."""
    left = list(kills)

    def listen(row: Any) -> None:
        if row["kind"] == "step" and left and row["version"] == left[0]:
            left.pop(0)
            for child in multiprocessing.active_children():
                if child.name == "agentrl-learner-0":
                    child.kill()

    own = (f"--run.directory={folder.parent}", f"--run.name={folder.name}", *flags)
    settings = load_settings(bundled.SETTINGS, [*FLAGS, *own])
    summary = train(settings, Options(listeners=(listen,)))
    return summary, [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]


def test_a_killed_learner_changes_nothing(tmp_path: Path) -> None:
    expected, steps = play(tmp_path / "whole")
    found, again = play(tmp_path / "killed", 1, 3)
    assert (expected["attempts"], found["attempts"], found["policy_versions"]) == (1, 3, 4)
    newest = {row["version"]: row for row in again}
    for row in steps:
        for name in ("reward_mean", "loss", "entropy", "drift"):
            assert newest[row["version"]][name] == row[name], (row["version"], name)
    last = [path / "weights/step_4/model.safetensors" for path in (tmp_path / "whole", tmp_path / "killed")]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_deaths_without_progress_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(LearnerLost, match="learner rank 0 died"):
        play(tmp_path / "run", 1, flags=("--run.restarts=0",))


def test_a_death_while_a_checkpoint_is_loaded_is_no_damage_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = LearnerProcesses.load, list[int]()

    def die_once(self: LearnerProcesses, *arguments: Any) -> Any:
        loads.append(len(loads))
        if len(loads) == 1:
            self.kill()
        return load(self, *arguments)

    monkeypatch.setattr(LearnerProcesses, "load", die_once)
    summary, _ = play(tmp_path / "run", 3)
    assert (len(loads), summary["policy_versions"]) == (2, 4)
    assert not [one for one in (tmp_path / "run" / "checkpoints").iterdir() if "damaged" in one.name]
