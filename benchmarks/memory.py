"""Memory of the learner as `agentrl doctor` foretells it, against the peak of a process that does the work.

    python -m benchmarks.memory                  # full and adapter training, both types, with and without recomputing

Each case is a process of its own: a random model is learned from for two steps of several micro-batches, and
its anonymous memory (RssAnon of /proc/self/status, read all the time) is compared with what it was before
the learner was made. Prints JSON lines; exits with 1 where a plan is off by more than 15 per cent.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.memory import learner_needs
from agentrl.config.settings import AdapterSettings, EngineSettings, LearnerSettings, ModelSettings, Settings
from benchmarks.learner import SIZES, make_episodes, make_model

BOUND = 0.15
CASES: tuple[dict[str, Any], ...] = (
    {"dtype": "bfloat16", "tokens": 1024},
    {"dtype": "bfloat16", "tokens": 1024, "rank": 16},
    {"dtype": "bfloat16", "tokens": 2048, "checkpointing": True},
    {"dtype": "float32", "tokens": 1024},
    {"dtype": "float32", "tokens": 1024, "rank": 16},
)


def anonymous_bytes() -> int:
    """What this process holds besides files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def watched(found: list[int]) -> Iterator[None]:
    """Append this process's largest anonymous memory inside."""
    end, largest = threading.Event(), 0

    def watch() -> None:
        nonlocal largest
        while not end.wait(0.002):
            largest = max(largest, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        found.append(largest)


def measure(case: dict[str, Any], size: str) -> dict[str, Any]:
    """Peak and plan of one case, in this process."""
    from agentrl.learner.learner import Learner

    tokens, rank = case["tokens"], case.get("rank", 0)
    learner_settings = LearnerSettings(
        micro_batch_tokens=tokens,
        gradient_checkpointing=case.get("checkpointing", False),
        adapter=AdapterSettings(rank=rank),
    )
    length = 256
    episodes = make_episodes([length] * (2 * tokens // length), SIZES[size].vocabulary)
    advantages = np.random.default_rng(1).normal(size=len(episodes))
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, size, case["dtype"], "cpu")
        gc.collect()
        before, peaks = anonymous_bytes(), list[int]()
        model = ModelSettings(path=folder, dtype=case["dtype"], device="cpu")
        with watched(peaks):
            learner = Learner(model, learner_settings)
            for _ in range(2):
                learner.step(episodes, advantages)
    plan = Settings(model=model, learner=learner_settings, engine=EngineSettings(context_tokens=length))
    needs = learner_needs(SIZES[size], plan)
    planned, measured = sum(need.bytes for need in needs), peaks[0] - before
    return {
        "benchmark": "memory",
        "size": size,
        **case,
        "measured_mb": round(measured / 2**20),
        "planned_mb": round(planned / 2**20),
        "off": round(planned / measured - 1, 3),
        "needs_mb": {need.what.removeprefix("learner: "): round(need.bytes / 2**20) for need in needs},
    }


def run(case: dict[str, Any], size: str) -> dict[str, Any]:
    """Peak and plan of one case, in a process of its own."""
    # Freed memory goes back at once, as it does on a device.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", "--size", size, "--case", json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="135m")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.size)))
        return
    rows = []
    for case in CASES:
        rows.append(run(case, options.size))
        print(json.dumps(rows[-1]), flush=True)
    sys.exit(any(abs(row["off"]) > BOUND for row in rows))


if __name__ == "__main__":
    main()
