"""Speed and memory of the learner, and scale of the value tracker and prompt sampler.

    python benchmarks/learner.py tracker                 # 10,000, 100,000 and 1,000,000 prompts
    python benchmarks/learner.py step                    # one batch through a random model
    python benchmarks/learner.py step --size 135m --dtype bfloat16 --device cuda
    python benchmarks/learner.py head                    # memory of log-probabilities, against full logits
    python -m benchmarks.learner ranks --size deep --batch 64    # rank time lost to imbalance
    python -m benchmarks.learner against-trl --model FOLDER --trl-python PYTHON    # benchmarks/against_trl.py

Each prints JSON lines. Run it on an otherwise idle machine: wall time and CPU time are both printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.memory import learner_needs
from agentrl.cluster.model_shape import ModelShape, known_shapes
from agentrl.config.settings import (
    AdapterSettings,
    EngineSettings,
    LearnerSettings,
    ModelSettings,
    SamplerSettings,
    Settings,
    TrackerSettings,
)
from agentrl.episode import Episode, SegmentBuilder, StopReason

KNOWN = known_shapes()
SIZES: dict[str, ModelShape] = {
    "tiny": ModelShape(4, 192, 512, 3, 3, 64, 2048, True, 32768),
    "deep": ModelShape(12, 256, 768, 4, 2, 64, 8192, True, 32768, head_norms=True),
    "wide": ModelShape(4, 512, 1408, 8, 8, 64, 32000, False, 32768),
    "135m": KNOWN["HuggingFaceTB/SmolLM2-135M"],
    "0.6b": KNOWN["Qwen/Qwen3-0.6B"],
    "1.7b": KNOWN["Qwen/Qwen3-1.7B"],
    "4b": KNOWN["Qwen/Qwen3-4B"],
}
"""Shapes of the demo's model, two made up (Qwen3's and Llama's layers), SmolLM2-135M, and three of Qwen3."""


def bench_tracker(prompts: int, draws: int = 2048) -> dict[str, Any]:
    """Draw, refill, save and load with `prompts` prompts, half of them visited before."""
    from agentrl.algorithms import PromptSampler, ValueTracker

    random = np.random.default_rng(0)
    tracker = ValueTracker(prompts, TrackerSettings())
    state = tracker.state_dict()
    count = random.uniform(4, 20, prompts)
    value = random.beta(0.5, 0.5, prompts)
    state |= {"alpha": value * count, "beta": (1 - value) * count, "seen": random.random(prompts) < 0.5}
    tracker.load_state_dict(state)
    started = time.perf_counter()
    sampler = PromptSampler(tracker, SamplerSettings(), seed=0)
    build_s = time.perf_counter() - started
    rounds, cpu = [], []
    for _ in range(5):
        started, cpu_started = time.perf_counter(), time.process_time()
        drawn = [sampler.draw() for _ in range(draws)]
        rounds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - cpu_started)
        for prompt in drawn:
            sampler.returned(prompt)  # type: ignore[arg-type]
    drawn = [sampler.draw() for _ in range(draws)]
    started, cpu_started = time.perf_counter(), time.process_time()
    for prompt in drawn:
        assert prompt is not None
        tracker.fold(prompt, float(random.random() < 0.5), start_clock=0.0)
        sampler.folded(prompt)
        sampler.draw()
    refill_s = (time.perf_counter() - started) / draws
    refill_cpu_s = (time.process_time() - cpu_started) / draws
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.npz"
        started = time.perf_counter()
        np.savez(path, **{f"t.{k}": v for k, v in tracker.state_dict().items()},
                 **{f"s.{k}": v for k, v in sampler.state_dict().items()})  # fmt: skip
        save_s = time.perf_counter() - started
        started = time.perf_counter()
        with np.load(path) as loaded:
            tracker.load_state_dict({k[2:]: loaded[k] for k in loaded.files if k.startswith("t.")})
            sampler.load_state_dict({k[2:]: loaded[k] for k in loaded.files if k.startswith("s.")})
        load_s = time.perf_counter() - started
        size_mb = path.stat().st_size / 2**20
    return {
        "benchmark": "tracker",
        "prompts": prompts,
        "build_s": round(build_s, 4),
        f"draw_{draws}_ms": round(statistics.median(rounds) * 1e3, 2),
        f"draw_{draws}_cpu_ms": round(statistics.median(cpu) * 1e3, 2),
        "refill_us": round(refill_s * 1e6, 1),
        "refill_cpu_us": round(refill_cpu_s * 1e6, 1),
        "save_s": round(save_s, 3),
        "load_s": round(load_s, 3),
        "state_mb": round(size_mb, 1),
    }


def make_model(folder: str, size: str, dtype: str, device: str) -> int:
    """Write a random model; returns its number of parameters."""
    import torch
    import transformers

    shape = SIZES[size]
    torch.manual_seed(0)
    kind = transformers.Qwen3Config if shape.head_norms else transformers.LlamaConfig
    config = kind(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        dtype=dtype,
    )
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    with torch.device(where):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_lengths(count: int, tokens: int, kind: str) -> list[int]:
    """All equal; even, a fifth shorter to a fifth longer; exponential with mean `tokens`; or heavy-tailed: most
    short, some sixteen times as long."""
    random = np.random.default_rng(0)
    if kind == "even":
        return random.integers(tokens * 4 // 5, tokens * 6 // 5 + 1, count).tolist()
    if kind == "equal":
        return [tokens] * count
    if kind == "exponential":
        return np.clip(random.exponential(tokens, count), tokens // 8, tokens * 4).astype(int).tolist()
    drawn = tokens / 3 * (1 + random.pareto(1.2, count))
    return np.clip(drawn, tokens // 8, tokens * 16).astype(int).tolist()


def make_episodes(lengths: list[int], vocabulary: int, *, given: int = 0) -> list[Episode]:
    """Episodes of two turns, two thirds of whose tokens are sampled; with `given`, of one turn after so many."""
    random = np.random.default_rng(0)
    episodes = []
    for number, length in enumerate(lengths):
        builder = SegmentBuilder()
        turns = (
            (length // 6, False),
            (length // 3, True),
            (length // 6, False),
            (length - 2 * (length // 6) - length // 3 + 1, True),
        )
        if given:
            turns = ((given, False), (length - given + 1, True))
        for part, sampled in turns:
            ids = random.integers(0, vocabulary, max(1, part)).tolist()
            if sampled:
                builder.append_sampled(ids, [-8.0] * len(ids), [0] * len(ids))
            else:
                builder.append_given(ids)
        episodes.append(
            Episode(
                f"e{number}", number, f"p{number}", (builder.build(),), (), 1.0, StopReason.ANSWERED, 0, 1.0
            )
        )
    return episodes


def bench_step(options: argparse.Namespace) -> dict[str, Any]:
    """Median of several steps, after one that warms up; and what the memory plan foretold."""
    from agentrl.learner.learner import Learner

    shape = SIZES[options.size]
    settings = LearnerSettings(
        learning_rate=1e-6,
        mini_batch=options.mini_batch or options.batch,
        micro_batch_tokens=options.micro_batch_tokens,
        gradient_checkpointing=options.checkpointing,
        packing=options.packing,
        compile=options.compile,
        undo=options.undo,
        offload=options.offload,
        adapter=AdapterSettings(rank=options.rank),
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        parameters = make_model(folder, options.size, options.dtype, options.device)
        model = ModelSettings(path=folder, dtype=options.dtype, device=options.device)
        learner = Learner(model, settings)
    episodes = make_episodes(make_lengths(options.batch, options.tokens, options.lengths), shape.vocabulary)
    plan = Settings(model=model, learner=settings, engine=EngineSettings(context_tokens=1))
    advantages = np.random.default_rng(1).normal(size=len(episodes))
    cpu, results = [], []
    for _ in range(options.repeats + 1):
        started = time.process_time()
        results.append(learner.step(episodes, advantages, clock_tokens=options.clock_tokens))
        cpu.append(time.process_time() - started)
    first, results, cpu = results[0], results[1:], cpu[1:]
    last = results[-1]
    return {
        "benchmark": "step",
        "size": options.size,
        "parameters_m": round(parameters / 1e6, 1),
        "device": str(learner.device),
        "dtype": options.dtype,
        "rank": options.rank,
        "packing": options.packing,
        "compile": options.compile,
        "checkpointing": options.checkpointing,
        "offload": options.offload,
        "lengths": options.lengths,
        "longest": max(episode.num_tokens for episode in episodes),
        "batch": options.batch,
        "optimizer_steps": last.optimizer_steps,
        "tokens_read": last.tokens_read,
        "tokens_learned": last.tokens_learned,
        "padding_share": round(last.padding_share, 3),
        "first_s": round(first.seconds, 2),
        "wall_s": round(statistics.median(r.seconds for r in results), 3),
        "cpu_s": round(statistics.median(cpu), 3),
        "tokens_per_s": round(statistics.median(r.learn_tokens_per_s for r in results)),
        "model_tflops": round(statistics.median(r.model_tflops for r in results), 3),
        "mfu": round(statistics.median(r.mfu for r in results), 4),
        "proximal_share": round(last.proximal_s / last.seconds, 3),
        "drift_share": round(last.drift_s / last.seconds, 3),
        "peak_memory_mb": round(last.peak_memory_mb),
        "planned_memory_mb": round(
            sum(need.bytes for need in learner_needs(shape, plan, gpu=learner.device.type == "cuda")) / 2**20
        ),
    }


def bench_ranks(options: argparse.Namespace) -> dict[str, Any]:
    """Share of rank time that is lost to waiting, where a batch is balanced over `--ranks`.

    Each rank's packed micro-batches go forward and backward in this process, one after the other and with one
    thread, and their CPU seconds stand for the rank's: what other work does to a rank's wall time is left out.
    """
    import torch

    from agentrl.learner.batch import balance, build_sequences, pack
    from agentrl.learner.learner import Learner

    torch.set_num_threads(1)
    lengths = make_lengths(options.batch, options.tokens, options.lengths)
    if options.lengths_file:
        lengths = json.loads(Path(options.lengths_file).read_text())[: options.batch]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_model(folder, options.size, options.dtype, options.device)
        model = ModelSettings(path=folder, dtype=options.dtype, device=options.device)
        learner = Learner(model, LearnerSettings(packing="on"))
    forward = learner._forward
    sequences = build_sequences(make_episodes(lengths, SIZES[options.size].vocabulary))
    found = [len(one) for one in sequences]
    parts = balance(found, options.micro_batch_tokens, options.ranks, forward.even_at)

    def cpu(part: list[int]) -> float:
        started = time.process_time()
        forward.run(pack(sequences, part)).logprobs.sum().backward()
        return time.process_time() - started

    cpu(parts[0])
    # The least of several: other work on the machine only ever adds, and a wait is for the largest.
    tries = [[cpu(part) for part in parts] for _ in range(options.repeats)]
    seconds = [min(of) for of in zip(*tries, strict=True)]
    costs = [sum(found[at] * (1 + found[at] / forward.even_at) for at in part) for part in parts]
    rounds = range(0, len(parts), options.ranks)

    def lost(of: list[float]) -> float:
        """All ranks wait for the slowest of a round."""
        return 1 - sum(of) / sum(options.ranks * max(of[at : at + options.ranks]) for at in rounds)

    return {
        "benchmark": "ranks",
        "size": options.size,
        "ranks": options.ranks,
        "lengths": options.lengths_file or options.lengths,
        "sequences": len(found),
        "tokens": sum(found),
        "longest": max(found),
        "micro_batches": len(parts),
        "lost_by_cost": round(lost(costs), 4),
        "lost_by_cpu_s": round(lost(seconds), 4),
        "cpu_s": [round(one, 3) for one in seconds],
    }


def bench_head(options: argparse.Namespace) -> None:
    """Peak memory of log-probabilities and their gradient, each way in a process of its own."""
    for arm in ("full", "selected"):
        command = [sys.executable, __file__, "head", "--arm", arm, "--positions", str(options.positions)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")


def bench_head_arm(arm: str, positions: int, vocabulary: int = 151_936, width: int = 256) -> dict[str, Any]:
    """One way: all logits at once, or only some at a time."""
    import torch

    from agentrl.learner.logprobs import selected_log_probs

    hidden = torch.randn(positions, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (positions,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu_started = time.perf_counter(), time.process_time()
    if arm == "full":
        logp = torch.log_softmax(hidden @ weight.t(), -1)
        (-logp.gather(-1, targets[:, None]).mean()).backward()
    else:
        logp = selected_log_probs(hidden, weight, None, targets, torch.ones(positions)).logprobs
        (-logp.mean()).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "benchmark": "head",
        "arm": arm,
        "positions": positions,
        "vocabulary": vocabulary,
        "added_memory_mb": round((peak - before) / 1024),
        "wall_s": round(time.perf_counter() - started, 2),
        "cpu_s": round(time.process_time() - cpu_started, 2),
    }


def main() -> None:
    """Read the command line and print JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["tracker", "step", "head", "ranks", "against-trl"])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument(
        "--lengths-file", help="ranks: a JSON list of lengths, of which the first of a batch are taken"
    )
    parser.add_argument("--model", help="against-trl: folder with SmolLM2 (scripts/build_smollm2.py)")
    parser.add_argument("--trl-python", help="against-trl: Python of an environment with TRL 1.16")
    parser.add_argument("--trl-micro-batch", type=int, default=8, help="against-trl: completions of one pass")
    parser.add_argument(
        "--trl-dtype", choices=["float32", "bfloat16"], help="against-trl: of TRL's arm, if another"
    )
    parser.add_argument(
        "--trl-as-shipped", action="store_true", help="against-trl: its head over every token too"
    )
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--mini-batch", type=int, default=0, help="0 is the batch")
    parser.add_argument("--lengths", choices=["equal", "even", "exponential", "heavy"], default="exponential")
    parser.add_argument("--packing", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rank", type=int, default=0, help="of an adapter; 0 learns all weights")
    parser.add_argument("--folder", help="where the random model is written; it takes its size for a moment")
    parser.add_argument("--tokens", type=int, default=256, help="mean length of an episode")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--clock-tokens", type=int, default=2048)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--offload", action="store_true", help="optimizer state in host memory")
    parser.add_argument("--undo", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--arm", choices=["full", "selected"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "tracker":
        for prompts in (10_000, 100_000, 1_000_000):
            print(json.dumps(bench_tracker(prompts)))
    elif options.what == "step":
        print(json.dumps(bench_step(options)))
    elif options.what == "ranks":
        print(json.dumps(bench_ranks(options)))
    elif options.what == "against-trl":
        from benchmarks.against_trl import bench_against_trl

        bench_against_trl(options, make_lengths(options.batch, options.tokens, options.lengths))
    elif options.arm:
        print(json.dumps(bench_head_arm(options.arm, options.positions)))
    else:
        bench_head(options)


if __name__ == "__main__":
    main()
