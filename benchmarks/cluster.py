"""Rollout workers on Ray clusters of this machine: what they cost, and what a lost one costs.

`python -m benchmarks.cluster workers`: CPU seconds a turn of rollouts over 1 and 4 worker processes, with a
prepared engine in place of a model (the loop's own cost) and with the demo's model. `... overhead`: the demo's
task with three nodes of Ray against without, CPU seconds after the first step. `... losses`: the demo's task to
its end on three nodes, of which one dies and another joins, and an engine's process dies (with `--vllm PYTHON` a
server of vLLM); the ledger is counted.
CPU seconds are those of this process and all below it, Ray's own daemons included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.config import bundled
from agentrl.config.loading import load_settings
from agentrl.config.settings import Settings
from agentrl.episode import Episode
from agentrl.rollout.token_completer import Dispatch, episode_seed
from agentrl.rollout.worker_pool import RolloutWorkers, rollout_workers
from agentrl.storage.metrics import read_metrics
from agentrl.training.assembly import assemble
from agentrl.training.orchestrator import Orchestrator
from agentrl.training.parts import Options
from agentrl.training.plan import plan_run
from benchmarks.scale import Prepared

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


class PreparedEngine(Prepared):
    """Three calls and an answer in the demo's tokens, each after a second."""

    def __init__(self, settings: Settings, source: Any, tokenizer: Any, logs: Path) -> None:
        filler = "1+" * 100
        call = f"{filler}<code>\n```python\n1\n```\n</code>"
        super().__init__(call, f"{filler}{tokenizer.eos_token}", tokenizer)


@contextlib.contextmanager
def local_cluster(nodes: int) -> Iterator[Any]:
    """A head without room for workers and `nodes` nodes with room for one each."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # as `RayCluster` starts its own

    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def settings_of(folder: str | Path, *flags: str) -> Settings:
    """The demo's settings, its runs in `folder`."""
    own = [f"--model.path={bundled.MODEL}", f"--run.directory={folder}", "--checkpoint.every=0"]
    return load_settings(bundled.SETTINGS, [*own, *flags])


# ---------------------------------------------------------------------- workers


async def spread(workers: int, each: int, episodes: int, *flags: str) -> Row:
    """CPU seconds a turn of whole episodes over some workers, after a warm-up.

    Args:
        workers: processes.
        each: episodes in flight of each.
        episodes: played by each, after as many as are in flight.
        flags: settings.
    """
    in_flight = each * workers
    given = (f"--cluster.rollout_workers={workers}", f"--stream.in_flight={in_flight}", *flags)
    settings = settings_of("unused", "--cluster.kind=ray", *given)
    (task,) = plan_run(settings).tasks
    numbers = iter(range(10**9))
    slots = asyncio.Semaphore(in_flight)

    async def play(pool: RolloutWorkers, number: int) -> Episode:
        async with slots:
            seed = episode_seed(0, "t", number)
            dispatch = Dispatch(f"t{number}", number, "p", 0, environment=task.name, seed=seed)
            return await pool.play_episode(dispatch, 0, task.rows[number % len(task.rows)])

    async def play_all(pool: RolloutWorkers, count: int) -> list[Episode]:
        return await asyncio.gather(*(play(pool, next(numbers)) for _ in range(count)))

    async with rollout_workers(settings) as pool:
        await play_all(pool, in_flight)
        cpu, wall = cpu_seconds(), time.monotonic()
        played = await play_all(pool, episodes * workers)
        used, wall = cpu_seconds() - cpu, time.monotonic() - wall
    failed = [episode for episode in played if episode.failure is not None]
    turns = sum(len(episode.turns) for episode in played)
    tokens = sum(episode.num_sampled for episode in played)
    return {
        "workers": workers,
        "in_flight": in_flight,
        "episodes": len(played),
        "failed": len(failed),
        "turns": turns,
        "tokens": tokens,
        "cpu_s": used,
        "wall_s": wall,
        "cpu_ms_a_turn": 1e3 * used / turns,
        "cpu_us_a_token": 1e6 * used / tokens,
    }


PREPARED = (
    f"--engine.kind={ROOT}/benchmarks/cluster.py:PreparedEngine",
    f"--env.name={ROOT}/benchmarks/scale.py:Talk",
    "--engine.context_tokens=0",
    "--rollout.max_tokens=100000",
    "--sandbox.backend=broken",
    "--eval.data=",
)


def workers(options: argparse.Namespace) -> None:
    """1 and 4 workers in turn, on one cluster."""
    with tempfile.TemporaryDirectory() as folder, local_cluster(4):
        rows = Path(folder) / "rows.jsonl"
        rows.write_text("".join(f'{{"id": "p{n}", "problem": "p"}}\n' for n in range(1000)))
        engines: dict[str, tuple[int, int, tuple[str, ...]]] = {
            "prepared": (100, 400, (*PREPARED, f"--data.train={rows}")),
            "demo": (64, 128, ()),
        }
        for engine in options.engines:
            each, episodes, flags = engines[engine]
            for repeat in range(options.repeats):
                for count in (1, 4):
                    row = asyncio.run(spread(count, each, episodes, *flags))
                    _tell({"benchmark": "workers", "engine": engine, "repeat": repeat, **row})


# ---------------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is taken away while a run goes on."""

    version: int
    """At which it happens."""
    happen: Callable[[Orchestrator], Awaitable[str]]
    """Says what it was."""


async def run(settings: Settings, losses: Sequence[Loss] = ()) -> Row:
    """A run to its end: its steps, evaluations, how its episodes ended."""
    versions: asyncio.Queue[int] = asyncio.Queue()

    def listen(row: Mapping[str, Any]) -> None:
        if row["kind"] == "step":
            versions.put_nowait(row["version"])

    async def lose() -> list[str]:
        left, told = list(losses), []
        while left:
            version = await versions.get()
            if version == left[0].version:
                told.append(f"version {version}: {await left.pop(0).happen(orchestrator)}")
        return told

    async with assemble(plan_run(settings), None, Options(listeners=(listen,))) as orchestrator:
        losing = asyncio.ensure_future(lose())
        await orchestrator.run()
        told = await losing
        ledger, folder = orchestrator.parts.ledger, orchestrator.parts.folder
        learned = [key for batch in ledger.learned_batches(0).values() for key in batch]
        training = [key for key in ledger.entries if key.startswith("t")]
        counts, reasons = ledger.summary(), ledger.discarded_by_reason()
    rows = read_metrics(folder.metrics)
    steps = [row for row in rows if row["kind"] == "step"]
    return {
        "losses": told,
        "steps": len(steps),
        "cpu_s_after_the_first_step": steps[-1]["cpu_s"] - steps[0]["cpu_s"],
        "wall_s_after_the_first_step": steps[-1]["time_s"] - steps[0]["time_s"],
        "tokens_after_the_first_step": steps[-1]["tokens_generated"] - steps[0]["tokens_generated"],
        "scores": [[row["version"], row["reward_mean"]] for row in rows if row["kind"] == "eval"],
        "ledger": counts,
        "reasons": reasons,
        "dispatched": len(ledger.entries),
        "training_episodes": len(training),
        "learned_once": len(learned) == len(set(learned)),
        "learned": len(learned),
        "workers_lost": steps[-1].get("engine_workers_lost", 0),
        "workers_live": steps[-1].get("engine_workers_live", 0),
    }


ARMS = {
    "without": (),
    "ray_2_workers": ("--cluster.kind=ray", "--cluster.rollout_workers=2"),
    "ray_1_worker": ("--cluster.kind=ray", "--cluster.rollout_workers=1"),
}


def one(options: argparse.Namespace) -> None:
    """One run of an arm of `overhead`."""
    flags = [f"--run.steps={options.steps}", f"--run.seed={options.seed}", "--eval.data=", *ARMS[options.arm]]
    on = contextlib.nullcontext() if options.arm == "without" else local_cluster(2)
    with tempfile.TemporaryDirectory() as folder, on:
        row = asyncio.run(run(settings_of(folder, *flags)))
    _tell({"benchmark": "overhead", "arm": options.arm, "seed": options.seed, **row})


def overhead(options: argparse.Namespace) -> None:
    """The arms in turn, each run in a process of its own."""
    for seed in range(options.repeats):
        for arm in ARMS:
            told = ["one", "--arm", arm, "--seed", str(seed), "--steps", str(options.steps)]
            command = [sys.executable, "-m", "benchmarks.cluster", *told]
            subprocess.run(command, cwd=ROOT, check=True, timeout=3600)


FAST = (
    "--learner.learning_rate=2e-4",
    "--loss.kl_coefficient=0",
    "--stream.batch=32",
    "--learner.mini_batch=32",
)
"""The demo's task in fewer episodes, as `benchmarks.async_real` has it."""


def losses(options: argparse.Namespace) -> None:
    """The demo's task to its end, with losses on the way."""
    import ray

    with tempfile.TemporaryDirectory() as folder, local_cluster(2) as cluster:

        async def node(orchestrator: Orchestrator) -> str:
            worker = await _playing(orchestrator, 0)
            home = await worker.actor.__ray_call__.remote(lambda it: ray.get_runtime_context().get_node_id())
            (doomed,) = [one for one in cluster.worker_nodes if one.node_id == home]
            playing = worker.playing
            cluster.remove_node(doomed, allow_graceful=False)
            cluster.add_node(num_cpus=1)
            return f"the node of rollout worker 0, which played {playing} episodes, died, and one joined"

        async def replica(orchestrator: Orchestrator) -> str:
            worker = await _playing(orchestrator, 1)
            served = bool(options.vllm)
            pid = await worker.actor.__ray_call__.remote(
                lambda it: it.policy.servers[0].pid if served else os.getpid()
            )
            playing = worker.playing
            os.kill(pid, signal.SIGKILL)
            return f"the engine's process of rollout worker 1, which played {playing} episodes, was killed"

        flags = ("--cluster.kind=ray", f"--run.steps={options.steps}", f"--run.seed={options.seed}", *FAST)
        if options.vllm:
            # Servers start slowly where two of them share two cores.
            flags += (
                "--engine.kind=vllm",
                f"--engine.python={options.vllm}",
                "--engine.args=--enforce-eager",
            )
            flags += ("--engine.start_limit_s=900", "--cluster.start_limit_s=1000")
        settings = settings_of(folder, *flags)
        at = options.steps // 4
        row = asyncio.run(run(settings, [Loss(at, node), Loss(2 * at, replica)]))
    _tell({"benchmark": "losses", **row})


async def _playing(orchestrator: Orchestrator, index: int) -> Any:
    """A worker once it plays."""
    pool: Any = orchestrator.parts.policy
    worker = pool._workers[index]
    while not (worker.live and worker.playing):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.001)
    return worker


def _tell(row: Row) -> None:
    print(json.dumps(row), flush=True)


# ---------------------------------------------------------------------- table


def table(options: argparse.Namespace) -> None:
    """Ratios of what the others printed, from files."""
    rows = [
        json.loads(line)
        for path in options.files
        for line in path.read_text().splitlines()
        if line[:1] == "{"
    ]
    for engine in dict.fromkeys(row["engine"] for row in rows if row["benchmark"] == "workers"):
        found = [row for row in rows if row["benchmark"] == "workers" and row["engine"] == engine]
        for unit in ("cpu_ms_a_turn", "cpu_us_a_token"):
            mean = {n: np.median([row[unit] for row in found if row["workers"] == n]) for n in (1, 4)}
            ratio = mean[4] / mean[1]
            print(f"{engine}: {unit} over 1 worker {mean[1]:.3g}, over 4 {mean[4]:.3g}: {ratio:.2f} times")
    overheads = [row for row in rows if row["benchmark"] == "overhead"]
    used = {
        arm: np.median([row["cpu_s_after_the_first_step"] for row in overheads if row["arm"] == arm])
        for arm in ARMS
    }
    for arm, cpu_s in used.items():
        print(f"{arm}: {cpu_s:.1f} CPU s after the first step, {cpu_s / used['without']:.2f} times")


def main() -> None:
    """Run one of the benchmarks; each prints a line of JSON for each measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = {one.__name__: one for one in (workers, overhead, losses, one, table)}
    parser.add_argument("what", choices=commands)
    parser.add_argument("files", nargs="*", type=Path, help="of `table`: what the others printed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", choices=ARMS, default="without")
    parser.add_argument(
        "--vllm", default="", help="of `losses`: a Python with vLLM, which workers then serve"
    )
    parser.add_argument("--engines", nargs="*", default=["prepared", "demo"], help="of `workers`")
    options = parser.parse_args()
    commands[options.what](options)


if __name__ == "__main__":
    main()
