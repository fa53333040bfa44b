"""`agentrl init`: each kind of project passes its own tests and checks, and trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.cli.init import HELD_OUT, KINDS, ROWS
from agentrl.cli.main import main
from agentrl.storage.metrics import read_metrics
from agentrl_envs import registry

SMALL = ["--steps=2", "--stream.batch=4", "--engine.slots=4", "--eval.limit=2", "--name=run", "--quiet"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--kind", request.param]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.slow
@pytest.mark.parametrize("project", KINDS, indirect=True)
def test_a_project_passes_its_tests(project: Path):
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("project", KINDS, indirect=True)
def test_a_project_is_checked_and_trains_two_steps(project: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch", reason="it trains (pip install agentrl[train])")
    assert main(["check", "environment.py"]) == 0
    assert "ready to train on" in capsys.readouterr().out
    assert main(["train", "settings.toml", *SMALL]) == 0
    rows = read_metrics(project / "runs" / "run" / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["tokens_learned"] > 0 for row in steps)
    assert sum(row["kind"] == "eval" for row in rows) == 2


@pytest.mark.parametrize("project", KINDS, indirect=True)
def test_no_held_out_row_is_learned_from(project: Path):
    learned, held_out = (
        [json.loads(line) for line in (project / name).read_text().splitlines()]
        for name in ("rows.jsonl", "held_out.jsonl")
    )
    assert (len(learned), len(held_out)) == (ROWS, HELD_OUT)
    examples = registry.load_env(project / "environment.py").example_rows
    asked = [{frozenset({**row, "id": ""}.items()) for row in rows} for rows in (learned, held_out, examples)]
    assert [len(rows) for rows in asked[:2]] == [ROWS, HELD_OUT]
    assert not asked[1] & (asked[0] | asked[2])
    if "secret" in learned[0]:
        assert not {row["secret"] for row in held_out} & {row["secret"] for row in [*learned, *examples]}


def test_what_it_writes_is_told_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    told = capsys.readouterr().out
    for name in ("environment.py", "rows.jsonl", "held_out.jsonl", "settings.toml", "test_environment.py"):
        assert name in told
        assert (tmp_path / "mine" / name).stat().st_size > 0
    env = registry.load_env(tmp_path / "mine" / "environment.py")
    assert [spec.name for spec in env.tool_specs()] == ["python"]
    before = (tmp_path / "mine" / "environment.py").read_bytes()
    assert main(["init", "mine", "--kind", "game"]) == 1
    assert "exists; name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "environment.py").read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_file_it_writes_learns_as_its_first_lines_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my_env.py"]) == 0
    assert main(["train", "my_env.py", "--steps=12", "--quiet"]) == 0
    summary = json.loads(next((tmp_path / "runs").glob("*/summary.json")).read_text())
    # It is .14 and .55; before, no answer was ever right, and nothing could be learned from.
    assert summary["reward_first"] > 0.05
    assert summary["reward_last"] > summary["reward_first"] + 0.15


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("project", ["game"], indirect=True)
def test_the_game_learns_with_the_bundled_model(project: Path):
    assert main(["train", "settings.toml", "--steps=14", "--quiet"]) == 0
    summary = json.loads(next((project / "runs").glob("*/summary.json")).read_text())
    # It is .09, and .30 after ten steps; before, words and numbers of two digits were beyond the model, and
    # hardly a guess was ever right.
    assert summary["reward_first"] > 0.03
    assert summary["reward_last"] > summary["reward_first"] + 0.1
