"""Memory of the learner as `agentrl doctor` foretells it, against the peak of a process that does the work.

    python -m benchmarks.memory                  # full and adapter training of several shapes, in both types
    python -m benchmarks.memory --size tiny      # one of the shapes

Each case is a process of its own, in which a random model is learned from: a short step, after which the
optimizer has its moments, and one of two micro-batches. Its largest resident memory in that step (the kernel's
VmHWM) is compared with what it was before the learner was made; the same was done with a tiny model before, so
that code and what is set up once do not count. Prints JSON lines; exits with 1 where a plan is off by more than
15 per cent.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.memory import learner_needs
from agentrl.config.settings import AdapterSettings, EngineSettings, LearnerSettings, ModelSettings, Settings
from benchmarks.learner import SIZES, make_episodes, make_model

BOUND = 0.15
LENGTH = 256
"""Tokens of an episode."""
PROMPT = 16
"""Of them; the plan expects that any token may be learned from."""
CASES: tuple[dict[str, Any], ...] = (
    {"dtype": "bfloat16", "tokens": 1024},
    {"dtype": "bfloat16", "tokens": 1024, "rank": 16},
    {"dtype": "bfloat16", "tokens": 2048, "checkpointing": True},
    {"dtype": "bfloat16", "tokens": 2048, "checkpointing": True, "rank": 16},
    {"dtype": "float32", "tokens": 1024},
    {"dtype": "float32", "tokens": 1024, "rank": 16},
)
SHAPES = ("tiny", "deep", "wide", "135m")


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def forget_peak() -> None:
    """From now on VmHWM is the largest since now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(case: dict[str, Any], size: str) -> dict[str, Any]:
    """Peak and plan of one case, in this process."""
    _peak(case, "tiny", LENGTH)
    settings, measured = _peak(case, size, case["tokens"])
    needs = learner_needs(SIZES[size], settings)
    planned = sum(need.bytes for need in needs)
    return {
        "benchmark": "memory",
        "size": size,
        **case,
        "measured_mb": round(measured / 2**20),
        "planned_mb": round(planned / 2**20),
        "off": round(planned / measured - 1, 3),
        "needs_mb": {need.what.removeprefix("learner: "): round(need.bytes / 2**20) for need in needs},
    }


def _peak(case: dict[str, Any], size: str, tokens: int) -> tuple[Settings, int]:
    """The settings of a case, and the most bytes that learning from two micro-batches added."""
    from agentrl.learner.learner import Learner

    learner_settings = LearnerSettings(
        micro_batch_tokens=tokens,
        gradient_checkpointing=case.get("checkpointing", False),
        adapter=AdapterSettings(rank=case.get("rank", 0)),
    )
    short = make_episodes([16], SIZES[size].vocabulary)
    episodes = make_episodes([LENGTH] * (2 * tokens // LENGTH), SIZES[size].vocabulary, given=PROMPT)
    advantages = np.random.default_rng(1).normal(size=len(episodes))
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, size, case["dtype"], "cpu")
        gc.collect()
        model = ModelSettings(path=folder, dtype=case["dtype"], device="cpu")
        before = resident("VmRSS")
        learner = Learner(model, learner_settings)
        learner.step(short, [1.0])
        forget_peak()
        learner.step(episodes, advantages)
        largest = resident("VmHWM")
    settings = Settings(model=model, learner=learner_settings, engine=EngineSettings(context_tokens=LENGTH))
    return settings, largest - before


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
    parser.add_argument("--size", choices=list(SIZES), action="append")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.size[0])))
        return
    rows = []
    for size in options.size or SHAPES:
        for case in CASES:
            rows.append(run(case, size))
            print(json.dumps(rows[-1]), flush=True)
    sys.exit(any(abs(row["off"]) > BOUND for row in rows))


if __name__ == "__main__":
    main()
