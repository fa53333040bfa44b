"""Seconds that a learner waits for a checkpoint, and until all of it is on disk.

`python -m benchmarks.checkpoints [--size 135m] [--dtype bfloat16] [--ranks 1] [--rounds 5]`: a random model with
AdamW's moments is saved over and over, waiting for the disk and not, in turns; in the second case a step is taken
meanwhile. Flushed and renamed as in a run. Prints one JSON line for each way: medians, CPU of all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.learner.process import LearnerProcesses
from agentrl.storage.durable import replace_folder
from benchmarks.learner import SIZES, make_episodes, make_model

POLL_S = 0.01


def save(learner: LearnerProcesses, folder: Path, batch: Any, *, wait: bool) -> dict[str, float]:
    """Of one checkpoint; a step before it begins with what the last step left."""
    temporary = folder / ".step.tmp"
    temporary.mkdir()
    os.sync()
    cpu, began = cpu_seconds(), time.perf_counter()
    learner.save(temporary / "learner", wait=wait)
    if wait:
        replace_folder(temporary, folder / "step", "checkpoint")
    waited = time.perf_counter() - began
    learner.step(*batch)
    step = time.perf_counter() - began - waited
    while not learner.saved():
        time.sleep(POLL_S)
    if not wait:
        replace_folder(temporary, folder / "step", "checkpoint")
    return {"learner_waits_s": waited, "step_after_s": step, "cpu_s": cpu_seconds() - cpu}


def main() -> None:
    """Measure both ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        weights = make_model(f"{place}/model", options.size, options.dtype, "cpu")
        model = ModelSettings(path=f"{place}/model", device="cpu", dtype=options.dtype, threads=1)
        batch = make_episodes([64] * 2, SIZES[options.size].vocabulary), [1.0, -1.0]
        rows: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        settings = LearnerSettings(place="process", ranks=options.ranks, micro_batch_tokens=128)
        with LearnerProcesses(model, settings) as learner:
            learner.step(*batch)
            for number in range(2 * options.rounds):
                wait = number % 4 in (0, 3)
                rows[wait].append(save(learner, folder, batch, wait=wait))
        size = sum(path.stat().st_size for path in (folder / "step").rglob("*") if path.is_file())
    for wait, found in rows.items():
        medians = {name: round(statistics.median(row[name] for row in found), 3) for name in found[0]}
        named = {"waits": wait, "weights": weights, "ranks": options.ranks, "mb": round(size / 1e6)}
        print(json.dumps(named | medians | {"load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    main()
