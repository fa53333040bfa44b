"""Rollout workers on real Ray clusters of several nodes on this machine (`make test-distributed`)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.config import bundled
from agentrl.config.loading import load_settings
from agentrl.episode import Episode
from agentrl.errors import ConfigError, PolicyUnavailable
from agentrl.inference.policy import Generation, Sampling
from agentrl.rollout.token_completer import Dispatch
from agentrl.rollout.worker_pool import RolloutWorkers, Worker, rollout_workers
from agentrl.storage.ledger import Ledger
from agentrl.storage.metrics import read_metrics
from agentrl.training.assembly import assemble
from agentrl.training.orchestrator import Orchestrator
from agentrl.training.parts import Options
from agentrl.training.plan import plan_run
from agentrl.weights.handle import WeightHandle
from tests.needed import needed

ray = needed("ray", "make test-distributed installs it")

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


def demo(folder: Path, *flags: str) -> Any:
    """Settings of a short demo on a cluster."""
    small = ("--run.steps=3", "--stream.batch=16", "--learner.mini_batch=16", "--engine.slots=16")
    own = (f"--model.path={bundled.MODEL}", f"--run.directory={folder}", "--eval.data=generated:test:8")
    return load_settings(bundled.SETTINGS, [*own, *small, "--cluster.kind=ray", *flags])


async def run(folder: Path, *flags: str, meanwhile: Any = None) -> tuple[Orchestrator, list[str]]:
    """A run to its end; `meanwhile(orchestrator)` once the first version is learned."""
    said: list[str] = []
    learned = asyncio.Event()

    def listen(row: Any) -> None:
        if row["kind"] == "step":
            learned.set()

    options = Options(on_ready=said.append, listeners=(listen,))
    async with assemble(plan_run(demo(folder, *flags)), None, options) as orchestrator:
        running = asyncio.ensure_future(orchestrator.run())
        if meanwhile is not None:
            await asyncio.wait(
                (running, asyncio.ensure_future(learned.wait())), return_when="FIRST_COMPLETED"
            )
            await meanwhile(orchestrator)
        await running
    return orchestrator, said


def counts_of(orchestrator: Orchestrator) -> dict[str, int]:
    """How many episodes ended in which way; nothing else is left."""
    ledger = Ledger(orchestrator.parts.folder.ledger)
    try:
        return ledger.summary()
    finally:
        ledger.close()


def test_the_same_run_here_and_there(cluster: Any, tmp_path: Path) -> None:
    # In a deterministic run a message depends on its prompt, its seed and the weights alone.
    there, _ = asyncio.run(run(tmp_path / "there", "--run.deterministic=true"))
    here, _ = asyncio.run(run(tmp_path / "here", "--run.deterministic=true", "--cluster.kind=none"))
    found, expected = (
        [row for row in read_metrics(one.parts.folder.metrics) if row["kind"] == "step"]
        for one in (there, here)
    )
    assert len(found) == 3
    for row, other in zip(found, expected, strict=True):
        for name in ("reward_mean", "loss", "entropy", "sampled_tokens_mean"):
            assert row[name] == other[name], name


async def test_a_worker_that_dies_comes_back_with_the_newest_weights(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rollout_workers(demo(tmp_path, "--cluster.rollout_workers=1")) as workers:
        await say(workers, "counted")
        (worker,) = workers._workers
        await worker.actor.__ray_call__.remote(lambda _: logging.getLogger("engine").warning("it is hot"))
        await workers.load(WeightHandle(version=7, attempt=1, source=str(bundled.MODEL)))
        assert workers.statistics()["sampled_tokens"] == 4
        assert ("engine", logging.WARNING, "rollout worker 0: it is hot") in caplog.record_tuples
        pid = worker.pid
        asked = asyncio.ensure_future(say(workers, "a", tokens=400))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PolicyUnavailable, match="rollout worker 0 is gone: .*died"):
            await asked
        assert set((await say(workers, "b")).policy_versions) == {7}
        # The new worker has counted nothing yet; what the old one had counted is not taken back.
        await workers.load(WeightHandle(version=8, attempt=1, source=str(bundled.MODEL)))
        assert workers.statistics()["workers_lost"] == 1
        assert workers.statistics()["sampled_tokens"] == 4 + 4


async def arithmetic(workers: RolloutWorkers, name: str = "e") -> Episode:
    """An episode of the demo's environment."""
    (task,) = plan_run(workers._settings).tasks
    dispatch = Dispatch(name, 0, "p", 0, environment=task.name)
    return await workers.play_episode(dispatch, 0, task.rows[0])


async def test_a_worker_that_stands_still_is_named_and_replaced(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--cluster.rollout_workers=1", "--rollout.limit_s=20", "--engine.update_limit_s=3")
    weights = WeightHandle(version=2, attempt=1, source=str(bundled.MODEL))
    async with rollout_workers(demo(tmp_path, *flags)) as workers:
        assert workers._limits["exchange"][0] == 100.0
        workers._limits["exchange"] = (3.0, workers._limits["exchange"][1])
        (worker,) = workers._workers
        first = stopped(worker)
        episode = await arithmetic(workers)
        assert episode.failure is not None
        assert episode.failure.error == "WorkerLost"
        assert episode.failure.message == (
            "waited 3 s for rollout worker 0 to play an episode (twice rollout.limit_s and a minute)"
        )
        assert (await arithmetic(workers)).failure is None
        second = stopped(worker)
        await workers.load(weights)  # by the third worker, which is waited for
        waited = "waited 3 s for rollout worker 0 to take new weights (engine.update_limit_s)"
        assert waited in caplog.text
        assert set((await say(workers, "b")).policy_versions) == {2}
        assert worker.lost == 2
        for pid in (first, second):
            await gone(pid)


async def test_a_worker_that_stands_still_under_an_evaluation_is_replaced(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rollout_workers(demo(tmp_path, "--cluster.rollout_workers=1")) as workers:
        workers._limits["release"] = (3.0, workers._limits["release"][1])
        (worker,) = workers._workers
        stopped(worker)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(say(workers, "a"), 1.0)  # as the limit of an episode, rollout.limit_s
        await workers.release("a")
        assert "waited 3 s for rollout worker 0 to forget a session; it is started again" in caplog.text
        assert worker.lost == 1
        assert len((await say(workers, "b")).token_ids) > 0


SLOW = """
import asyncio
from agentrl_envs.arithmetic import Arithmetic

class Slow(Arithmetic):
    async def setup(self):
        await asyncio.sleep(60)
"""


async def test_a_worker_answers_with_all_episodes_and_an_evaluation_on_it(
    cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    settings = demo(tmp_path, "--cluster.rollout_workers=1", "--stream.in_flight=80")
    slow = replace(settings.env[0], name=f"{tmp_path}/slow.py:Slow")
    async with rollout_workers(replace(settings, env=(slow,))) as workers:
        (worker,) = workers._workers
        dispatches = [Dispatch(f"e{index}", index, "p", 0, environment="slow") for index in range(160)]
        row = {"id": "p", "problem": "1+1", "answer": "2"}
        playing = [asyncio.ensure_future(workers.play_episode(one, 0, row)) for one in dispatches]
        await until(lambda: worker.playing == 160, 10.0)
        await asyncio.wait_for(workers._told(worker, "release", "nobody"), 15.0)
        for one in playing:
            one.cancel()
        await asyncio.gather(*playing, return_exceptions=True)


def stopped(worker: Worker) -> int:
    """Stop the process of a worker as a debugger does; its number."""
    os.kill(worker.pid, signal.SIGSTOP)
    return worker.pid


async def gone(pid: int) -> None:
    """Wait until a process is no more."""
    await until(lambda: not Path(f"/proc/{pid}").exists(), 10.0)


async def until(holds: Callable[[], bool], limit_s: float) -> None:
    """Wait for something that nobody tells."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def lost(workers: RolloutWorkers) -> None:
    """Kill the only worker, and wait until that is known."""
    (worker,) = workers._workers
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(PolicyUnavailable, match="rollout worker 0 is gone"):
        await say(workers, "lost")
    assert not worker.live


async def test_weights_that_come_while_no_worker_is_live(cluster: Any, tmp_path: Path) -> None:
    async with rollout_workers(demo(tmp_path, "--cluster.rollout_workers=1")) as workers:
        (worker,) = workers._workers
        before = worker.actor
        await lost(workers)
        await workers.load(WeightHandle(version=8, attempt=1, source=str(bundled.MODEL)))
        assert workers.version == 8
        # A late word of the actor that died does nothing to the one in its place.
        workers._lose(worker, before, PolicyUnavailable("late"))
        assert (worker.live, worker.lost) == (True, 1)
        assert set((await say(workers, "b")).policy_versions) == {8}


async def test_a_worker_that_cannot_be_started_again_at_once_is_tried_again(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rollout_workers(demo(tmp_path, "--cluster.rollout_workers=1")) as workers:
        good = workers._settings
        # As on a machine that has not the folder: no error of the engine.
        workers._settings = replace(good, model=replace(good.model, path=str(tmp_path / "none")))
        await lost(workers)
        for _ in range(600):
            if "could not be started again" in caplog.text:
                break
            await asyncio.sleep(0.1)
        workers._settings = good
        assert len((await say(workers, "b")).token_ids) > 0


async def test_a_worker_whose_engine_has_died_gets_no_more_episodes(cluster: Any, tmp_path: Path) -> None:
    async with rollout_workers(demo(tmp_path, "--cluster.rollout_workers=1")) as workers:
        (worker,) = workers._workers
        await worker.actor.__ray_call__.remote(lambda it: it.policy._thread.post(lambda: 1 / 0))
        episode = await arithmetic(workers)
        assert episode.failure is not None
        assert episode.failure.error == "PolicyUnavailable"
        assert worker.lost == 1
        assert (await arithmetic(workers)).failure is None


async def test_a_worker_whose_sandbox_has_died_is_replaced(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rollout_workers(demo(tmp_path, "--cluster.rollout_workers=1")) as workers:
        (worker,) = workers._workers
        assert await workers._told(worker, "check_sandbox") is None
        await worker.actor.__ray_call__.remote(lambda it: setattr(it._sandbox, "_closed", True))
        episode = await arithmetic(workers)
        assert episode.failure is not None
        assert episode.failure.boundary == "sandbox"
        assert "rollout worker 0: SandboxClosed: the sandbox was closed; it is started again" in caplog.text
        assert worker.lost == 1
        assert (await arithmetic(workers)).failure is None


async def say(workers: RolloutWorkers, session: str, tokens: int = 4) -> Generation:
    return await workers.generate([5, 6, 7], Sampling(tokens), session=session, start_version=0)


async def test_workers_without_room_are_refused(cluster: Any, tmp_path: Path) -> None:
    text = "rollout_workers = 3 with 1 CPU each do not fit: .* 2 CPU and 0 GPU"
    with pytest.raises(ConfigError, match=text):
        await rollout_workers(demo(tmp_path, "--cluster.rollout_workers=3")).__aenter__()


def test_a_node_that_dies_costs_its_unfinished_episodes(cluster: Any, tmp_path: Path) -> None:
    async def lose(orchestrator: Orchestrator) -> None:
        workers = orchestrator.parts.policy
        assert isinstance(workers, RolloutWorkers)
        worker = workers._workers[0]
        node = await worker.actor.__ray_call__.remote(lambda it: ray.get_runtime_context().get_node_id())
        await until(lambda: worker.playing > 0, 60.0)
        stopped(worker)  # else its episodes may end before their node does
        (doomed,) = [one for one in cluster.worker_nodes if one.node_id == node]
        cluster.remove_node(doomed)  # in the main thread: Ray's helper sets handlers of signals
        cluster.add_node(num_cpus=1)

    orchestrator, said = asyncio.run(run(tmp_path, "--run.steps=6", meanwhile=lose))
    assert [line.partition(":")[0] for line in said[:2]] == ["rollout worker 0", "rollout worker 1"]
    counts = counts_of(orchestrator)
    steps = [row for row in read_metrics(orchestrator.parts.folder.metrics) if row["kind"] == "step"]
    assert [row["version"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert counts["learned"] == 6 * 16
    assert 0 < counts["failed"] <= 16
    assert set(counts) <= {"learned", "failed", "abandoned", "evaluated", "discarded"}
    assert steps[-1]["engine_workers_lost"] == 1
