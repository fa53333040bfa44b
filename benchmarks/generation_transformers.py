"""The embedded engine against `model.generate` in batches of 32, on messages of heavy-tailed lengths.

Both sample the same numbers of tokens after the same prompts with the same model; the engine also
records log-probabilities, `generate` does not have to. The two are run in turns, at least five
times; the result is the ratio of the medians of CPU time, with wall time beside it, as one line of
JSON.

    PYTHONPATH=.:envs:sandbox python benchmarks/generation_transformers.py [--model FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, StoppingCriteria

from agentrl.inference.embedded.engine import TransformersPolicy
from agentrl.inference.policy import Sampling
from benchmarks.tiny_config import tiny_config


class RowLengths(StoppingCriteria):
    """Ends each row of a batch at a length of its own, as its end-of-text token would."""

    def __init__(self, ends: list[int]) -> None:
        self._ends = torch.tensor(ends)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """[B] which rows are done."""
        return self._ends <= input_ids.shape[1]


def make_requests(
    count: int, vocabulary: int, *, median: int, spread: float, longest: int, seed: int
) -> list[tuple[list[int], int]]:
    """Prompts and message lengths; lengths are log-normal."""
    rng = random.Random(seed)
    requests = []
    for _ in range(count):
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randrange(10, 60))]
        requests.append((prompt, min(longest, max(4, round(median * rng.lognormvariate(0.0, spread))))))
    return requests


def run_generate(model: Any, requests: list[tuple[list[int], int]], batch: int) -> int:
    """Batches in order, padded on the left; a batch ends with its longest message."""
    tokens = 0
    for begin in range(0, len(requests), batch):
        part = requests[begin : begin + batch]
        width = max(len(prompt) for prompt, _ in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros(len(part), width, dtype=torch.long)
        for i, (prompt, _) in enumerate(part):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max(length for _, length in part),
            stopping_criteria=[RowLengths([width + length for _, length in part])],
            pad_token_id=0,
            eos_token_id=None,
        )
        tokens += sum(length for _, length in part)
    return tokens


async def run_engine(policy: TransformersPolicy, requests: list[tuple[list[int], int]], run: int) -> int:
    """All at once; the engine keeps its slots full."""

    async def one(number: int, prompt: list[int], length: int) -> int:
        session = f"{run}/{number}"
        said = await policy.generate(
            prompt, Sampling(max_new_tokens=length), session=session, start_version=0
        )
        await policy.release(session)
        return len(said.token_ids)

    return sum(await asyncio.gather(*(one(i, *request) for i, request in enumerate(requests))))


def measured(seconds: list[tuple[float, float]], tokens: int) -> dict[str, float]:
    """Medians of CPU and wall seconds, and tokens a second."""
    cpu, wall = (statistics.median(pair[i] for pair in seconds) for i in (0, 1))
    return {
        "cpu_s": round(cpu, 3),
        "wall_s": round(wall, 3),
        "tokens_per_cpu_s": round(tokens / cpu, 1),
        "tokens_per_wall_s": round(tokens / wall, 1),
    }


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run both in turns."""
    torch.set_num_threads(options.threads)
    model = load(options.model)
    requests = make_requests(
        options.requests,
        model.config.vocab_size,
        median=options.median,
        spread=options.spread,
        longest=options.longest,
        seed=options.seed,
    )
    policy = TransformersPolicy(model, slots=options.batch, context_tokens=options.longest + 64)
    await policy.start()
    seconds: dict[str, list[tuple[float, float]]] = {"generate": [], "engine": []}
    tokens = 0
    try:
        for run in range(options.repeats + 1):
            for name in ("generate", "engine") if run % 2 else ("engine", "generate"):
                cpu, wall = time.process_time(), time.perf_counter()
                if name == "engine":
                    tokens = await run_engine(policy, requests, run)
                else:
                    tokens = run_generate(model, requests, options.batch)
                if run:  # The first run of each warms up.
                    seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    finally:
        await policy.close()
    generate, engine = (measured(seconds[name], tokens) for name in ("generate", "engine"))
    return {
        "benchmark": "generation_transformers",
        "model": options.model or "random Llama, 4 layers x 256, vocabulary 512",
        "batch": options.batch,
        "requests": len(requests),
        "tokens": tokens,
        "longest": max(length for _, length in requests),
        "repeats": options.repeats,
        "threads": options.threads,
        "generate": generate,
        "engine": engine,
        "ratio_cpu": round(generate["cpu_s"] / engine["cpu_s"], 2),
        "ratio_wall": round(generate["wall_s"] / engine["wall_s"], 2),
    }


def load(path: str) -> Any:
    """The model to measure."""
    if path:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = tiny_config(
        "llama", vocabulary=512, hidden=256, inner=704, layers=4, heads=8, key_heads=4, head=32, context=1024
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    """Parse options and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", default="", help="folder of a Hugging Face model; default a small random one"
    )
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--median", type=int, default=32, help="median length of a message, in tokens")
    parser.add_argument("--spread", type=float, default=1.0, help="sigma of the log-normal lengths")
    parser.add_argument("--longest", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(compare(parser.parse_args()))))


if __name__ == "__main__":
    main()
