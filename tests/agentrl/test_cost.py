"""Rollouts for initial values are part of what a run cost, in every report."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli.train import sentence
from agentrl.errors import Interrupted
from agentrl.evaluation.subjects import training_cost
from agentrl.evaluation.tables import training_lines
from agentrl.report import read_run, write_report
from agentrl.report.terminal import describe
from agentrl.storage.cost import Cost, spent
from agentrl.storage.metrics import read_metrics
from agentrl.training.resume import resume
from agentrl.training.train import summarise
from scripts import learning_curve

ROWS: list[dict[str, Any]] = [
    {"kind": "initial", "episodes": 24, "tokens": 300, "seconds": 5.0, "cpu_s": 9.0, "score_mean": 0.5},
    {"kind": "eval", "step": 0, "version": 0, "reward_mean": 0.3, "episodes": 8},
    {"kind": "step", "step": 1, "version": 1, "episodes": 8, "tokens_generated": 110, "time_s": 7.0},
    {"kind": "step", "step": 2, "version": 2, "episodes": 16, "tokens_generated": 200, "time_s": 9.0},
]


def write_run(path: Path) -> Path:
    path.mkdir()
    (path / "run.json").write_text('{"format": 2, "run_id": "1"}')
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for version in (1, 2):
        (path / "weights" / f"step_{version}").mkdir(parents=True)
        (path / "weights" / f"step_{version}" / "config.json").write_text("{}")
    return path


def test_the_cost_of_a_run_by_hand():
    assert spent(ROWS) == Cost(2, 16, 200, 9.0, 24, 300, 5.0)
    assert (spent(ROWS).episodes_total, spent(ROWS).tokens_total) == (40, 500)
    assert spent(ROWS, 1).tokens_total == 410
    # Before the first step the initial rollouts are all there is.
    assert spent(ROWS, 0) == Cost(0, 0, 0, 5.0, 24, 300, 5.0)
    assert spent([]) == Cost()


async def test_a_run_counts_tokens_time_and_episodes_of_its_initial_rollouts(
    new_loop: Callable[..., Any],
) -> None:
    run = await new_loop("--tracker.initial_rollouts=2")
    played: list[int] = []
    written = run.orchestrator.parts.recorder.record

    def record(episode: Any, done: Callable[[], None]) -> None:
        if episode.episode_id.startswith("i"):
            played.append(episode.num_sampled)
        written(episode, done)

    run.orchestrator.parts.recorder.record = record
    await run.orchestrator.run()
    summary = summarise(run.orchestrator, 10.0, 10.0)
    assert summary["episodes_initial"] == 24
    assert summary["tokens_initial"] == sum(played) > 0
    assert summary["tokens_total"] == summary["tokens"] + summary["tokens_initial"]
    assert summary["seconds_initial"] > 0.0
    cost = spent(read_metrics(run.folder.metrics))
    assert (cost.episodes_initial, cost.tokens_initial) == (24, sum(played))
    assert cost.seconds_initial == pytest.approx(summary["seconds_initial"])
    told = sentence(summary)
    assert f"32 episodes, 24 more for initial values ({sum(played):,} of {summary['tokens_total']:,}" in told
    await run.close()


async def test_initial_rollouts_of_an_attempt_that_was_ended_are_counted_once(
    new_loop: Callable[..., Any], reopen: Callable[..., Any]
) -> None:
    # Fails when the tokens of rollouts found in the ledger are not added, or totals are added up twice.
    run = await new_loop("--tracker.initial_rollouts=2")
    ledger, played = run.orchestrator.parts.ledger, []
    evaluated = ledger.evaluated

    def stop_half_way(key: str, score: float, tokens: int = 0) -> None:
        evaluated(key, score, tokens)
        played.append(tokens)
        if len(played) == 10:
            run.orchestrator.stop()

    ledger.evaluated = stop_half_way
    with contextlib.suppress(Interrupted):
        await run.orchestrator.run()
    before = run.orchestrator.progress.totals.initial_s
    await run.close()
    assert 10 <= len(played) < 24

    again = await reopen("--tracker.initial_rollouts=2")
    ledger = again.orchestrator.parts.ledger
    evaluated = ledger.evaluated

    def count(key: str, score: float, tokens: int = 0) -> None:
        evaluated(key, score, tokens)
        played.append(tokens)

    ledger.evaluated = count
    await resume(again.orchestrator)
    await again.orchestrator.run()
    assert len(played) == 24
    cost = spent(read_metrics(again.folder.metrics))
    assert (cost.episodes_initial, cost.tokens_initial) == (24, sum(played))
    assert again.orchestrator.progress.totals.values["tokens_initial"] == sum(played)
    assert cost.seconds_initial > before > 0.0
    await again.close()


def test_the_page_draws_along_totals(tmp_path: Path):
    run = read_run(write_run(tmp_path / "a"))
    assert run["columns"]["tokens_total"] == [410, 500]
    assert run["columns"]["episodes_total"] == [32, 40]
    # The evaluation before learning stands where the initial rollouts ended, not at zero.
    assert run["start"] == {"version": 0, "time_s": 5.0, "episodes_total": 24, "tokens_total": 300}
    assert "24 more episodes were played for initial values: 300 of 500 tokens, 5 s" in run["sentence"]
    assert run["tiles"][2:6] == [
        ["episodes", "40"],
        ["of them for initial values", "24"],
        ["tokens sampled", "500"],
        ["of them for initial values", "300"],
    ]
    page = write_report(tmp_path / "a").read_text()
    axes = re.search(r"const AXES = {(.*?)}", page)
    assert axes is not None
    for axis in re.findall(r"(\w+):", axes[1]):
        assert axis in run["columns"]
        assert axis in run["start"]


def test_the_learning_curve_can_be_drawn_along_all_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_run(tmp_path / "a")
    rows = [
        json.loads(line) | {"reward_mean": 0.5} for line in (path / "metrics.jsonl").read_text().splitlines()
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learning_curve.main([str(path), "--tokens"])
    drawing = capsys.readouterr().out
    width = learning_curve.WIDTH - learning_curve.LEFT - learning_curve.RIGHT
    first = re.search(r'<circle cx="([\d.]+)"', drawing)
    assert first is not None
    # Before learning 300 of the 500 tokens are spent.
    assert float(first[1]) == pytest.approx(learning_curve.LEFT + width * 300 / 500, abs=0.1)


def test_an_evaluation_says_what_the_training_behind_it_cost(tmp_path: Path):
    cost = training_cost(str(write_run(tmp_path / "a")))
    assert (cost["version"], cost["tokens_total"], cost["tokens_initial"]) == (2, 500, 300)
    assert training_lines({"training": cost}) == [
        "trained for 2 versions on 40 episodes and 500 tokens, of them 24 and 300 for initial values (5 s); 9 s"
    ]
    assert training_cost("Qwen/Qwen3-8B") == {}
    assert training_lines({}) == []


def test_the_terminal_says_where_initial_values_come_from():
    assert describe(ROWS[0]) == "initial values from 24 rollouts, 300 tokens: mean score 0.500 in 5 s"
    row = {"kind": "initial", "episodes": 0, "tokens": 0, "prompts": 12, "file": "old.jsonl"}
    assert describe(row) == "initial values of 12 prompts from old.jsonl"
