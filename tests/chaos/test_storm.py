"""Runs killed with SIGKILL and resumed: nothing is lost, nothing counts twice.

The runs are deterministic, so after any number of kills the final numbers must equal those of an
undisturbed run. The number of kills can be raised: AGENTRL_STORM=100 (`make test-chaos`).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentrl.storage.durable import KILL_POINT, read_lines
from agentrl.storage.metrics import read_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1500)]

PROCESS = Path(__file__).with_name("loop_process.py")
ROOT = Path(__file__).parents[2]
FLAGS = ("--run.steps=6", "--run.deterministic=true", "--checkpoint.every=2")
GRPO = ("--estimator.kind=grpo", "--estimator.group_size=2")
ARMS = {
    "spo": ("--tracker.initial_rollouts=1", "--eval.every=2"),
    "wait": ("--stream.stale_policy=wait", "--tracker.drift=replay"),
    "grpo": (*GRPO, "--eval.every=3"),
    "dynamic": (*GRPO, "--estimator.dynamic_sampling=true"),
}
KILL_POINTS = ("ledger", "episode", "metrics", "checkpoint", "rotate", "run", "step", "credit")
STORM = int(os.environ.get("AGENTRL_STORM", "24"))


def start(folder: Path, arm: str, kill: str = "", flags: tuple[str, ...] = FLAGS) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "envs", "sandbox")),
        KILL_POINT: kill,
    }
    return subprocess.Popen(
        [sys.executable, str(PROCESS), str(folder), *flags, *ARMS[arm]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    processes = {arm: start(folder / arm, arm) for arm in ARMS}
    return {arm: finish(process) for arm, process in processes.items()}


def check_ledger(folder: Path) -> None:
    """Every dispatched episode ended in exactly one state; every learned batch counts once."""
    state: dict[str, str] = {}
    batches: dict[int, list[str]] = {}
    lines = read_lines(folder / "ledger.jsonl")
    for record in itertools.chain.from_iterable(line.get("of", [line]) for line in lines):
        if record["e"] == "attempt":
            for version in [v for v in batches if v >= record["v"]]:
                for key in batches.pop(version):
                    state[key] = "finished"
        elif record["e"] == "learned":
            batches[record["v"]] = record["ks"]
            state.update(dict.fromkeys(record["ks"], "learned"))
        else:
            state[record["k"]] = record["e"]
    assert set(state.values()) <= {"learned", "evaluated", "discarded", "abandoned"}
    assert sorted(batches) == list(range(6))
    keys = Counter(key for batch in batches.values() for key in batch)
    assert set(keys.values()) == {1}
    assert sum(keys.values()) == 6 * 8


def compare(folder: Path, result: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("digest", "values", "evaluations", "ledger"):
        assert result[part] == expected[part], part
    check_ledger(folder)
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", range(2 * len(KILL_POINTS)))
def test_killed_at_every_durable_write(
    number: int, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    point = f"{KILL_POINTS[number // 2]}.{('before', 'after')[number % 2]}"
    hits = 0
    for turn, passage in enumerate((1, 2, 7)):
        arm = list(ARMS)[(number + turn) % len(ARMS)]
        folder = tmp_path / f"run{passage}"
        process = start(folder, arm, kill=f"{point}:{passage}")
        process.communicate(timeout=120)
        if process.returncode == -signal.SIGKILL:
            hits += 1
        if not (folder / "run.json").exists():
            continue  # killed before the run existed: there is nothing to resume
        if process.returncode == -signal.SIGKILL:
            compare(folder, finish(start(folder, arm)), undisturbed[arm])
    assert hits, f"kill point {point} was never passed"


def test_killed_again_and_again_at_random_moments(
    tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    rng = random.Random(7)
    kills = 0
    number = 0
    while kills < STORM:
        number += 1
        arm = list(ARMS)[number % len(ARMS)]
        folder = tmp_path / f"run{number}"
        for _ in range(4):
            process = start(folder, arm)
            time.sleep(rng.uniform(0.3, 1.6))
            if process.poll() is None:
                process.kill()
                # A process that died while Python was starting tested nothing.
                kills += (folder / "ledger.jsonl").exists()
            output, _ = process.communicate(timeout=120)
            if process.returncode == 0:
                compare(folder, json.loads(output), undisturbed[arm])
                break
        else:
            if (folder / "run.json").exists():
                compare(folder, finish(start(folder, arm)), undisturbed[arm])


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_an_asynchronous_run_survives_kills_too(arm: str, tmp_path: Path) -> None:
    flags = ("--run.steps=6", "--checkpoint.every=2", "--stream.staleness=2")
    folder = tmp_path / "run"
    rng = random.Random(arm)
    for _ in range(3):
        process = start(folder, arm, flags=flags)
        time.sleep(rng.uniform(0.5, 1.4))
        process.kill()
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
    else:
        finish(start(folder, arm, flags=flags))
    check_ledger(folder)
