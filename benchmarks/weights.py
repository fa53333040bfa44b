"""How long weights travel: from the end of a learner's step to the first token sampled under them.

`python -m benchmarks.weights`: a model of 50 million weights, all of them and an adapter of rank 16, by every way that
needs no GPU: the engine of this process, with the learner in a thread or in processes of its own (1 and 2 ranks), a
rollout worker of a Ray cluster, and with `--vllm PYTHON` a vLLM server on the CPU, which merges the adapter or has it
apart. Eight sessions are sampled meanwhile. The steps are real ones, of one short episode. Each update prints a line
of JSON; `table` reads them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.config import bundled
from agentrl.config.loading import load_settings
from agentrl.config.settings import Settings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.inference.engines import make_policy
from agentrl.inference.policy import Policy, Sampling
from agentrl.training.assembly import make_learner
from agentrl.training.learner_thread import LearnerThread
from agentrl.weights.model_files import load_tokenizer
from benchmarks.cluster import local_cluster
from benchmarks.tiny_config import tiny_config

Row = dict[str, Any]
SESSIONS = 8
"""Sampled while weights travel."""
PROMPT = [5, 6, 7, 8]
KINDS = {
    "full": (),
    "adapter": ("--learner.adapter.rank=16",),
    # Updates come faster than messages end here: with fewer at once a new adapter would wait for an old one.
    "apart": ("--learner.adapter.rank=16", "--engine.adapter=apart", "--engine.adapters=8"),
}
PLACES = {
    "": (),
    ", learner of 1 rank": ("--learner.place=process",),
    ", learner of 2 ranks": ("--learner.place=process", "--learner.ranks=2"),
}
VLLM = ("--engine.kind=vllm", "--engine.args=--enforce-eager")
WAYS = {
    **{f"embedded{name}": flags for name, flags in PLACES.items()},
    "ray": ("--cluster.kind=ray", "--cluster.rollout_workers=1"),
    **{f"vllm{name}": (*VLLM, *flags) for name, flags in PLACES.items()},
}


def make_model(folder: Path) -> int:
    """Write a random model with the demo's tokenizer; the number of its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(bundled.MODEL))
    torch.manual_seed(0)
    size = {
        "hidden": 512,
        "inner": 2048,
        "layers": 12,
        "heads": 8,
        "key_heads": 8,
        "head": 64,
        "context": 512,
    }
    model = AutoModelForCausalLM.from_config(tiny_config(vocabulary=len(tokenizer), **size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def settings_of(model: Path, *flags: str) -> Settings:
    """The demo's settings with another model."""
    own = (f"--model.path={model}", "--loss.kl_coefficient=0", "--engine.slots=16", "--eval.data=")
    return load_settings(bundled.SETTINGS, [*own, *flags])


@contextlib.asynccontextmanager
async def engine(settings: Settings, learner: LearnerThread, folder: Path) -> AsyncIterator[Policy]:
    """The engine of the settings, started."""
    if settings.cluster.kind == "ray":
        from agentrl.rollout.worker_pool import rollout_workers

        async with rollout_workers(settings) as workers:
            yield workers
        return
    made = await make_policy(settings, learner.handle, load_tokenizer(settings.model.path), folder)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def episode(version: int) -> Episode:
    """Sixteen tokens to learn from."""
    segment = SegmentBuilder()
    segment.append_given(PROMPT)
    segment.append_sampled([9] * 16, [-3.0] * 16, [version] * 16)
    return Episode(
        f"t{version}", version, "p", (segment.build(),), (), 1.0, StopReason.ANSWERED, version, 1.0
    )


async def sample_on(policy: Policy, session: str) -> None:
    """Messages one after the other, for ever."""
    while True:
        await policy.generate(PROMPT, Sampling(64), session=session, start_version=policy.version)
        await policy.release(session)


async def updates(settings: Settings, folder: Path, count: int) -> AsyncIterator[Row]:
    """Seconds of each update, after one that is not counted."""
    made = await asyncio.to_thread(make_learner, settings)
    learner = LearnerThread(made)
    try:
        async with engine(settings, learner, folder) as policy:
            busy = [asyncio.ensure_future(sample_on(policy, f"s{n}")) for n in range(SESSIONS)]
            try:
                for version in range(1, count + 2):
                    row = await update(policy, learner, version)
                    if version > 1:
                        yield row
            finally:
                for task in busy:
                    task.cancel()
                await asyncio.gather(*busy, return_exceptions=True)
    finally:
        await learner.close()


async def update(policy: Policy, learner: LearnerThread, version: int) -> Row:
    """One step, its weights on their way, and the first token under them."""
    await learner.step([episode(version - 1)], np.array([1.0]), clock_tokens=0)
    cpu, began = cpu_seconds(), time.monotonic()
    handle = await learner.handle(version, 1)
    gathered = time.monotonic()
    await policy.load(handle)
    loaded = time.monotonic()
    said = await policy.generate(PROMPT, Sampling(1), session=f"first{version}", start_version=version)
    ended = time.monotonic()
    assert list(said.policy_versions) == [version]
    await policy.release(f"first{version}")
    return {
        "version": version,
        "gather_s": gathered - began,
        "load_s": loaded - gathered,
        "first_token_s": ended - loaded,
        "seconds": ended - began,
        "cpu_s": cpu_seconds() - cpu,
    }


async def measure(model: Path, way: str, kind: str, count: int, flags: Sequence[str]) -> None:
    """Print the updates of one way."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(model, *WAYS[way], *KINDS[kind], *flags)
        async for row in updates(settings, Path(folder), count):
            print(json.dumps({"way": way, "kind": kind, **row, "load": os.getloadavg()[0]}), flush=True)


def table(files: Sequence[Path]) -> None:
    """Medians, and an adapter's share of the whole."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines() if line[:1] == "{"]
    print("| way | weights | s | of these gather, load, first token | CPU s | of all weights |")
    print("|---|---|---|---|---|---|")
    for way in WAYS:
        whole = 0.0
        for kind in KINDS:
            found = [row for row in rows if (row["way"], row["kind"]) == (way, kind)]
            if not found:
                continue
            names = ("seconds", "gather_s", "load_s", "first_token_s", "cpu_s")
            seconds, *parts, cpu_s = (float(np.median([row[name] for row in found])) for name in names)
            whole = seconds if kind == "full" else whole
            told = ", ".join(f"{part:.2f}" for part in parts)
            share = f"{seconds / whole:.2f}" if whole and kind != "full" else ""
            print(f"| {way} | {kind} | {seconds:.2f} | {told} | {cpu_s:.2f} | {share} |")


def main() -> None:
    """Measure, or read what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("files", nargs="*", type=Path, help="of `table`")
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="all that can be by default")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--vllm", default="", help="a Python with vLLM, for the ways of vLLM")
    options = parser.parse_args()
    if options.what == "table":
        table(options.files)
        return
    flags = [f"--engine.python={options.vllm}"] if options.vllm else []
    ways = options.ways or [way for way in WAYS if options.vllm or not way.startswith("vllm")]
    with tempfile.TemporaryDirectory() as folder:
        weights = make_model(Path(folder))
        print(f"# {weights:,} weights, float32", flush=True)
        for way in ways:
            for kind in KINDS if way.startswith("vllm") else ("full", "adapter"):
                with local_cluster(1) if way == "ray" else contextlib.nullcontext():
                    asyncio.run(measure(Path(folder), way, kind, options.count, flags))


if __name__ == "__main__":
    main()
