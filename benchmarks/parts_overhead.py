"""What it costs that losses, aggregators and estimators are parts: CPU time beside that of a learner step.

`python -m benchmarks.parts_overhead`: the demo's model learns from batches of 64 random episodes. Measured,
interleaved, are whole steps, and for the same batch what stands around the parts alone: the lookup by name, the
check of shapes, the attribution of errors. Medians of CPU time; prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agentrl
from agentrl.config import registry
from agentrl.config.settings import AggregatorSettings, LearnerSettings, LossSettings, ModelSettings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.learner.learner import Learner
from agentrl.learner.losses.clipped import LossInputs
from agentrl.learner.objective import Objective

BATCH, SAMPLED, GIVEN = 64, 60, 40
MODEL = Path(agentrl.__file__).parent / "demo" / "model"


def episodes(vocabulary: int) -> list[Episode]:
    """Random episodes of one message each."""
    rng, found = np.random.default_rng(0), []
    for number in range(BATCH):
        builder = SegmentBuilder()
        builder.append_given(rng.integers(0, vocabulary, GIVEN).tolist())
        ids = rng.integers(0, vocabulary, SAMPLED).tolist()
        builder.append_sampled(ids, [-4.0] * SAMPLED, [0] * SAMPLED)
        found.append(
            Episode(f"e{number}", number, "p", (builder.build(),), (), 1.0, StopReason.ANSWERED, 0, 1.0)
        )
    return found


def seconds(act: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    act()
    return time.process_time() - began


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    learner = Learner(ModelSettings(path=str(MODEL), device="cpu"), LearnerSettings(mini_batch=BATCH))
    batch = episodes(int(learner.model.config.vocab_size))
    given = np.random.default_rng(1).normal(size=BATCH)
    objective, inputs = Objective(LossSettings(), AggregatorSettings()), list[LossInputs]()
    bare = registry.make("loss", "clipped", {})
    learner._objective._loss = lambda one: inputs.append(one) or bare(one)
    learner.step(batch, given)
    learner._objective._loss = bare
    steps, through, alone, lookups = [], [], [], []
    for _ in range(repeats):
        steps.append(seconds(lambda: learner.step(batch, given)))
        through.append(seconds(lambda: [objective(one) for one in inputs for _ in range(20)]) / 20)
        alone.append(seconds(lambda: [bare(one) for one in inputs for _ in range(20)]) / 20)
        lookups.append(seconds(lambda: [registry.declared("loss", "clipped") for _ in range(100)]) / 100)
    step = statistics.median(steps)
    around = statistics.median(a - b for a, b in zip(through, alone, strict=True))
    lookup = 2 * statistics.median(lookups)  # of estimator and loss, once a step each
    print(
        json.dumps(
            {
                "benchmark": "parts_overhead",
                "micro_batches": len(inputs),
                "step_cpu_s": round(step, 4),
                "around_the_loss_cpu_s": round(around, 7),
                "lookups_cpu_s": round(lookup, 7),
                "share": round((around + lookup) / step, 6),
                "repeats": repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
