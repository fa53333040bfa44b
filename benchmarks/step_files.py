"""What a step writes: bytes and CPU time by number of prompts, and bytes a token.

`python -m benchmarks.step_files`: a pool of prompts, batches of 256 drawn and folded, and after each what the
orchestrator does: take the light state, find what changed, write it with the values of 256 episodes of 2,000
tokens. Prints one JSON line for each size.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.storage import nested
from agentrl.storage.steps import StepFiles, StepRecord, TokenValues
from agentrl.tasks.task import Task
from agentrl.training.prompts import PromptPool
from agentrl_envs import Env

BATCH, STEPS, TOKENS = 256, 12, 2000


def token_values(random: np.random.Generator) -> TokenValues:
    """Of a batch: four messages of each episode."""
    count = BATCH * TOKENS
    runs = [(episode, 500 * turn, TOKENS // 4) for episode in range(BATCH) for turn in range(4)]
    return TokenValues(
        segments=np.array([(episode, 2 * TOKENS) for episode in range(BATCH)], dtype=np.int32),
        runs=np.array(runs, dtype=np.int32),
        logprobs=-random.exponential(0.5, count).astype(np.float32),
        entropies=random.exponential(0.5, count).astype(np.float16),
    )


def measure(prompts: int) -> dict[str, Any]:
    """Medians over steps, with a pool of so many prompts."""
    rows = tuple({"id": f"p{number}"} for number in range(prompts))
    pool = PromptPool(
        (Task("rows", Env, {}, 1.0, rows),),
        lambda environments: ValueTracker(len(environments), TrackerSettings()),
        SamplerSettings(),
        seed=0,
    )
    random = np.random.default_rng(0)
    tokens, old = token_values(random), {"pool": pool.state_dict()}
    seconds: dict[str, list[float]] = {"state_ms": [], "difference_ms": [], "write_ms": []}
    sizes: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for version in range(1, STEPS + 1):
            batch = [prompt for _ in range(BATCH) if (prompt := pool.draw()) is not None]
            for prompt in batch:
                pool.tracker.fold(prompt, float(random.random() < 0.5), start_clock=pool.tracker.clock)
            pool.tracker.advance_clock(0.01)
            for prompt in batch:
                pool.folded(prompt)
            marks = [time.process_time()]
            new = {"pool": pool.state_dict()}
            marks.append(time.process_time())
            light, old = nested.difference(old, new), new
            marks.append(time.process_time())
            record = StepRecord(
                version=version,
                attempt=1,
                episode_ids=[f"t{BATCH * version + place}" for place in range(BATCH)],
                scores=random.random(BATCH),
                baselines=random.random(BATCH),
                advantages=random.normal(size=BATCH),
                values={},
                light=light,
                progress={},
                tokens=tokens,
            )
            total = StepFiles(Path(folder), keep=10**6).write(record)
            marks.append(time.process_time())
            sizes.append(total)
            for name, spent in zip(seconds, np.diff(marks), strict=True):
                seconds[name].append(1000 * float(spent))
    arrays = (tokens.segments, tokens.runs, tokens.logprobs, tokens.entropies)
    of_tokens = sum(array.nbytes for array in arrays)
    return {
        "prompts": prompts,
        **{name: round(float(np.median(values)), 2) for name, values in seconds.items()},
        "bytes_a_step_without_tokens": int(np.median(sizes)) - of_tokens,
        "bytes_a_token": round(of_tokens / (BATCH * TOKENS), 2),
        "bytes_of_the_whole_state": len(nested.to_bytes(old)),
    }


if __name__ == "__main__":
    for size in map(int, sys.argv[1:] or ("17000", "1000000")):
        print(json.dumps(measure(size)), flush=True)
