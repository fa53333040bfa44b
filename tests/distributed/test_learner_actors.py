"""Learner ranks as actors on a Ray cluster of several nodes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentrl.cluster.ray import open_cluster
from agentrl.errors import ConfigError, LearnerError
from agentrl.storage.metrics import read_metrics
from agentrl.training.assembly import make_learner
from agentrl.training.parts import Options
from agentrl.training.train import train
from tests.needed import needed

ray = needed("ray", "make test-distributed installs it")

from tests.distributed.test_ray_cluster import demo

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

ON_THE_CLUSTER = (
    "--learner.place=cluster",
    "--cluster.learner_cpus=0.6",  # two on one node do not fit
    "--cluster.rollout_workers=1",
    "--cluster.cpus=0.3",
)


def rank_pids() -> list[int]:
    """Processes of learner ranks, as Ray names them."""
    names = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(pid) for pid, name in names.items() if name.startswith(b"ray::LearnerRank")]


def short(folder: Path, *flags: str) -> Any:
    """A deterministic run of three steps with two ranks."""
    run = ("--run.deterministic=true", "--run.steps=3", "--checkpoint.every=2", "--eval.data=")
    return demo(folder, *run, "--model.threads=1", "--learner.ranks=2", *flags)


def steps(folder: Path) -> dict[int, Any]:
    """Each version's newest row."""
    (run,) = folder.iterdir()
    return {row["version"]: row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"}


def test_a_rank_and_a_node_that_die_change_no_number(cluster: Any, tmp_path: Path) -> None:
    train(short(tmp_path / "here", "--learner.place=process", "--cluster.kind=none"))
    said: list[str] = []

    def disturb(row: Any) -> None:
        if row["kind"] != "step" or row["version"] in disturbed:
            return
        disturbed.add(row["version"])
        if row["version"] == 1:
            os.kill(rank_pids()[0], signal.SIGKILL)
        if row["version"] == 2:
            cluster.remove_node(next(iter(cluster.worker_nodes)))
            cluster.add_node(num_cpus=1)

    disturbed: set[int] = set()
    options = Options(on_ready=said.append, listeners=(disturb,))
    summary = train(short(tmp_path / "there", *ON_THE_CLUSTER), options)
    assert [line.partition(":")[0] for line in said[:3]] == [
        "learner rank 0",
        "learner rank 1",
        "rollout worker 0",
    ]
    assert summary["attempts"] == 3
    here, there = steps(tmp_path / "here"), steps(tmp_path / "there")
    for version in (1, 2, 3):
        for name in ("reward_mean", "loss", "entropy", "grad_norm", "sampled_tokens_mean"):
            assert here[version][name] == there[version][name], (version, name)


def test_a_rank_that_does_not_see_the_folder_of_the_run(cluster: Any, tmp_path: Path) -> None:
    settings = short(tmp_path, *ON_THE_CLUSTER, "--learner.ranks=1")

    async def save() -> None:
        async with open_cluster(settings) as lent:
            with await asyncio.to_thread(make_learner, settings, lent) as learner:
                learner.save(tmp_path / "none" / "learner")

    with pytest.raises(
        LearnerError, match="learner rank 0 on .* does not see .*/none: the folder of a run must be"
    ):
        asyncio.run(save())


def test_a_gpu_that_nobody_lent(cluster: Any, tmp_path: Path) -> None:
    settings = short(tmp_path, *ON_THE_CLUSTER, "--learner.ranks=1", "--model.device=cuda")

    async def start() -> None:
        async with open_cluster(settings) as lent:
            await asyncio.to_thread(make_learner, settings, lent)

    with pytest.raises(
        ConfigError, match="model.device = 'cuda' needs cluster.learner_gpus = 1: Ray lent this rank no GPU"
    ):
        asyncio.run(start())
