"""A learner step beside a step of TRL's GRPOTrainer, on the same completions.

    python -m benchmarks.learner against-trl --model models/smollm2 --trl-python TRL_VENV/bin/python
    python -m benchmarks.learner against-trl ... --lengths heavy --batch 24 --tokens 128

TRL_VENV: `pip install torch==2.13.0 trl==1.16.0 peft`. Both arms of a round begin at the same time, so that other
work on the machine meets both; each is a process with one thread that takes one step. Reported are its CPU
seconds, tokens (prompts and completions, no padding) a CPU second, and the most memory that it held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (2048, 576, 1536)
"""Of the product whose rate is measured: a micro-batch through the MLP of SmolLM2-135M."""


def make_work(
    lengths: list[int], *, trained: float = 1 / 3, vocabulary: int = 49_000
) -> list[dict[str, Any]]:
    """Prompts and completions of random tokens; a third of each episode, and a little chance, is completion."""
    random = np.random.default_rng(0)
    work = []
    for length in lengths:
        completion = max(2, round(length * trained * random.uniform(0.75, 1.25)))
        prompt = max(1, length - completion)
        work.append(
            {
                "prompt": random.integers(0, vocabulary, prompt).tolist(),
                "completion": random.integers(0, vocabulary, completion).tolist(),
                "reward": float(random.random() < 0.5),
            }
        )
    return work


def learner_step(
    model: str, work: list[dict[str, Any]], dtype: str, micro_batch_tokens: int
) -> dict[str, Any]:
    """One step of the learner over `work`, with plain SPO's loss."""
    import torch

    from agentrl.config.settings import LearnerSettings, ModelSettings
    from agentrl.episode import Episode, SegmentBuilder, StopReason
    from agentrl.learner.flops import Flops
    from agentrl.learner.learner import Learner, build_sequences

    torch.set_num_threads(1)
    settings = LearnerSettings(learning_rate=1e-6, micro_batch_tokens=micro_batch_tokens)
    learner = Learner(ModelSettings(path=model, dtype=dtype, device="cpu"), settings)  # type: ignore[arg-type]
    episodes = []
    for at, one in enumerate(work):
        builder = SegmentBuilder()
        builder.append_given(one["prompt"])
        ids = one["completion"]
        builder.append_sampled(ids, [-8.0] * len(ids), [0] * len(ids))
        segments = (builder.build(),)
        episodes.append(Episode(f"e{at}", at, f"p{at}", segments, (), 1.0, StopReason.ANSWERED, 0, 1.0))
    advantages = np.array([one["reward"] - 0.5 for one in work])
    started = time.process_time()
    metrics = learner.step(episodes, advantages)
    seconds = time.process_time() - started
    counted = Flops.of(learner.model.config)
    assert counted is not None
    return {
        "cpu_s": [seconds],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "padding_share": round(metrics.padding_share, 4),
        "tflop": round(3 * counted.forward(build_sequences(episodes)) / 1e12, 3),
    }


def product_rates(seconds: float = 1.0) -> dict[str, float]:
    """10^9 operations of one CPU second in products of two matrices, by type."""
    import torch

    torch.set_num_threads(1)
    rows, inner, columns = SHAPE
    rates = {}
    for name in ("bfloat16", "float32"):
        dtype = getattr(torch, name)
        given, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        torch.nn.functional.linear(given, weight)
        count, started = 0, time.process_time()
        while time.process_time() - started < seconds:
            torch.nn.functional.linear(given, weight)
            count += 1
        rates[name] = 2 * rows * inner * columns * count / (time.process_time() - started) / 1e9
    return rates


def _commands(options: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    trl = [options.trl_python, "-m", "benchmarks.trl_step", options.model, str(work)]
    trl += ["--micro-batch", str(options.trl_micro_batch), "--dtype", options.trl_dtype or options.dtype]
    own = [sys.executable, "-m", "benchmarks.against_trl", options.model, str(work), options.dtype]
    return {
        "agentrl": [*own, str(options.micro_batch_tokens)],
        **({"trl": trl} if options.trl_as_shipped else {}),
        "trl, compact head": [*trl, "--compact"],
    }


def bench_against_trl(options: argparse.Namespace, lengths: list[int]) -> None:
    """Print a JSON line of each arm and round, and one of the medians."""
    work = make_work(lengths)
    tokens = sum(len(one["prompt"]) + len(one["completion"]) for one in work)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    rates: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    products: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(work))
        for number in range(options.repeats):
            running = {
                # Linux shares processors out among sessions first: each arm gets one of its own.
                name: subprocess.Popen(
                    command, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
                )
                for name, command in _commands(options, path).items()
            }
            products.append(product_rates())
            for name, process in running.items():
                output, _ = process.communicate()
                if process.returncode:
                    sys.exit(f"the arm {name!r} ended with {process.returncode}")
                row = json.loads(output.splitlines()[-1])
                rates.setdefault(name, []).append(tokens / statistics.median(row["cpu_s"]))
                peaks[name] = max(peaks.get(name, 0.0), row["peak_gib"])
                print(json.dumps({"round": number, "arm": name, **row}), flush=True)
            print(json.dumps({"round": number, "products_gflops": products[-1]}), flush=True)
    ratios = [own / other for own, other in zip(rates["agentrl"], rates["trl, compact head"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "against_trl",
                "dtype": options.dtype,
                "trl_dtype": options.trl_dtype or options.dtype,
                "lengths": options.lengths,
                "episodes": len(work),
                "tokens": tokens,
                "under_the_loss": sum(len(one["completion"]) for one in work),
                "longest": max(lengths),
                "tokens_per_cpu_s": {name: round(statistics.median(of), 1) for name, of in rates.items()},
                "ratios": [round(ratio, 3) for ratio in ratios],
                "ratio": round(statistics.median(ratios), 3),
                "peak_gib": peaks,
                "products_gflops": {
                    name: round(statistics.median(one[name] for one in products), 1) for name in products[0]
                },
            }
        )
    )


if __name__ == "__main__":
    given = Path(sys.argv[2])
    print(json.dumps(learner_step(sys.argv[1], json.loads(given.read_text()), sys.argv[3], int(sys.argv[4]))))
