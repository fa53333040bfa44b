"""Runs of the demo with other settings, for benchmarks: each in a process of its own, many in a sweep.

A run is the real program (`agentrl.training.train.train` on the demo's settings file). A benchmark may end it early:
it looks at every row of metrics and says when it has seen enough, and the run ends as it does on Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import agentrl
from agentrl.evaluation.statistics.quantiles import student_t_quantile

ROOT = Path(__file__).parents[1]
DEMO = Path(agentrl.__file__).parent / "demo"
Row = dict[str, Any]


def play(
    flags: Sequence[str], enough: Callable[[Row], bool], look: Callable[[Path], Row] = lambda run: {}
) -> list[Row]:
    """Run the demo with `flags` until `enough(row)`: the rows of metrics up to then, and the summary as a row.

    Needs the main thread (a run is ended by its own signal). The run's folder is temporary: what `look` makes
    of it is added to the summary.
    """
    from agentrl.config import loading
    from agentrl.errors import Interrupted
    from agentrl.training.parts import Options
    from agentrl.training.train import train

    rows: list[Row] = []
    ended = False

    def listen(row: Row) -> None:
        nonlocal ended
        if ended or row["kind"] == "phase":
            return
        rows.append(row)
        if enough(row):
            ended = True
            os.kill(os.getpid(), signal.SIGINT)

    with tempfile.TemporaryDirectory(prefix="demo-run-") as folder:
        own = [f"--model.path={DEMO / 'model'}", f"--run.directory={folder}", "--checkpoint.every=0"]
        settings = loading.load_settings(DEMO / "demo.toml", [*own, *flags])
        try:
            train(settings, Options(listeners=(listen,)))
        except Interrupted:
            if not ended:
                raise
        (summary,) = Path(folder).glob("*/summary.json")
        rows.append({"kind": "summary", **json.loads(summary.read_text()), **look(summary.parent)})
    return rows


def file_name(arm: str) -> str:
    """The name of an arm as it stands in file names."""
    return "".join(letter for letter in arm.lower().replace(" ", "_") if letter.isalnum() or letter == "_")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep: arguments of the benchmark's own module, and the file it writes."""

    arguments: tuple[str, ...]
    result: Path


def sweep(module: str, jobs: Sequence[Job], *, parallel: int, wrap: Sequence[str], limit_s: float) -> int:
    """Run the jobs whose result is missing, `parallel` at a time in the order given; the number that failed.

    Args:
        module: benchmark to run as `python -m module ARGUMENTS`.
        jobs: what to run.
        parallel: processes at once.
        wrap: command put before each process, for example `nice -n 10`.
        limit_s: longest time for one process, waiting for its turn included.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "envs", "sandbox")),
    }

    def run(job: Job) -> bool:
        if job.result.exists():
            return True
        job.result.parent.mkdir(parents=True, exist_ok=True)
        command = [*wrap, sys.executable, "-m", module, *job.arguments]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            print(f"{' '.join(job.arguments)}: not finished within {limit_s:.0f} s", flush=True)
            return False
        print(done.stdout.strip() or f"{' '.join(job.arguments)}: {done.stderr[-2000:]}", flush=True)
        return done.returncode == 0 and job.result.exists()

    with ThreadPoolExecutor(parallel) as pool:
        return sum(not good for good in pool.map(run, jobs))


def study_parser(
    text: str | None, folder: str, arms: Sequence[str] | None, seeds: int
) -> argparse.ArgumentParser:
    """Options of a benchmark that runs one arm, sweeps over arms and seeds, or makes its tables again."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("one", "sweep", "table"))
    parser.add_argument("--out", type=Path, default=Path(folder))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--wrap", default="", help="command put before each run, for example 'nice -n 10'")
    parser.add_argument("--arm", choices=arms)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def results(folder: Path) -> list[Any]:
    """What the runs of a sweep wrote."""
    return [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of n independent runs, and Student's t interval for it (equal to the mean where n is 1)."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, mean, mean
    half = student_t_quantile((1 + level) / 2, len(array) - 1) * float(array.std(ddof=1)) / len(array) ** 0.5
    return mean, mean - half, mean + half
