"""`agentrl sft`: supervised warm start of a model on written traces."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.config import registry
from agentrl.config.ranges import Amount, Count, Number, Seed, number

if TYPE_CHECKING:
    from agentrl.learner.supervised import SupervisedMetrics

EPILOG = """\
A trace is one line of JSON in the form of OpenAI's fine-tuning files:

  {"messages": [{"role": "user", "content": "..."},
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function",
                   "function": {"name": "python", "arguments": "{\\"code\\": \\"print(6*7)\\"}"}}]},
                {"role": "tool", "content": "42"},
                {"role": "assistant", "content": "\\\\boxed{42}"}],
   "tools": [...]}

Only what the assistant writes is learned. The weights that are written can be trained on:

  agentrl sft traces.jsonl --model models/smollm2 --out models/smollm2-sft
  agentrl train examples/gsm8k_python.toml --model models/smollm2-sft
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = subparsers.add_parser(
        "sft",
        help="supervised warm start on written traces",
        allow_abbrev=False,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", type=Path, help="jsonl file of traces")
    parser.add_argument("--model", required=True, help="folder with Hugging Face weights, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new weights")
    parser.add_argument(
        "--format",
        type=registry.argument("renderer", "auto"),
        default="auto",
        help="as rollout.format (default: auto)",
    )
    parser.add_argument("--epochs", type=number(Count), default=1, help="passes over the traces (default 1)")
    parser.add_argument(
        "--batch", type=number(Count), default=16, help="traces of one optimizer step (default 16)"
    )
    parser.add_argument(
        "--learning-rate", type=number(Amount), default=2e-5, help="largest one (default 2e-5)"
    )
    parser.add_argument("--limit", type=number(Number), default=0, help="first traces only; 0 takes all")
    parser.add_argument("--max-tokens", type=number(Count), default=1024, help="longer traces are left out")
    parser.add_argument(
        "--micro-batch-tokens", type=number(Count), default=4096, help="padded tokens of one pass"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the passes")
    parser.add_argument("--device", default="auto", help="auto takes a GPU where there is one")
    parser.add_argument("--threads", type=number(Number), default=0, help="CPU threads of torch")
    parser.add_argument("--seed", type=number(Seed), default=0, help="of the order of the traces")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Train and write the weights."""
    from agentrl.errors import ConfigError
    from agentrl.training.sft import fine_tune, load_traces

    traces = load_traces(options.traces)
    if (options.out / "config.json").exists():
        raise ConfigError(f"{options.out} holds a model already; choose another --out")
    from agentrl.learner.supervised import SupervisedSettings

    settings = SupervisedSettings(
        epochs=options.epochs,
        batch=options.batch,
        micro_batch_tokens=options.micro_batch_tokens,
        learning_rate=options.learning_rate,
        seed=options.seed,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
    )
    result = fine_tune(
        options.model,
        traces[: options.limit or None],
        options.out,
        settings,
        format=options.format,
        max_tokens=options.max_tokens,
        on_step=None if options.quiet else _printer(),
    )
    left_out = f" ({result.too_long} were too long)" if result.too_long else ""
    if result.unlearned_reasoning:
        print(f"reasoning_content of {result.unlearned_reasoning} traces is not learned: no format writes it")
    print(
        f"{result.traces} traces{left_out}, {result.steps} steps: held-out loss {result.loss_first:.3f} -> "
        f"{result.loss_last:.3f} nats a token in {result.wall_s:.0f} s ({result.cpu_s:.0f} CPU-seconds); "
        f"weights: {options.out}"
    )
    return 0


def _printer() -> Callable[[SupervisedMetrics], None]:
    def show(metrics: SupervisedMetrics) -> None:
        every = max(1, metrics.steps // 20)
        if metrics.step % every == 0 or metrics.step in (1, metrics.steps):
            print(
                f"step {metrics.step}/{metrics.steps}  loss {metrics.loss:.4f}  "
                f"grad norm {metrics.grad_norm:.2f}  learning rate {metrics.learning_rate:.2e}",
                file=sys.stderr,
                flush=True,
            )

    return show
