"""`agentrl sft`: supervised warm start of a model on written traces."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_settings, settings_of
from agentrl.training.sft import SHORT, SftSettings

if TYPE_CHECKING:
    from agentrl.learner.metrics import StepMetrics

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


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "sft", "supervised warm start on written traces", EPILOG)
    parser.add_argument("file", help="jsonl file of traces, or settings (.toml)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_settings(parser, SftSettings, SHORT)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Train and write the weights."""
    from agentrl.training.sft import fine_tune

    settings = settings_of(SftSettings, options.file, "sft.traces", options.settings)
    result = fine_tune(settings, None if options.quiet else show)
    left_out = f" ({result.too_long} were too long)" if result.too_long else ""
    if result.unlearned_reasoning:
        print(f"reasoning_content of {result.unlearned_reasoning} traces is not learned: no format writes it")
    print(
        f"{result.traces} traces{left_out}, {result.steps} steps: held-out loss {result.loss_first:.3f} -> "
        f"{result.loss_last:.3f} nats a token in {result.wall_s:.0f} s ({result.cpu_s:.0f} CPU-seconds); "
        f"weights: {settings.sft.out}"
    )
    return 0


def show(step: int, steps: int, metrics: StepMetrics) -> None:
    """Print one step in twenty."""
    if step % max(1, steps // 20) == 0 or step in (1, steps):
        print(
            f"step {step}/{steps}  loss {metrics.loss:.4f}  grad norm {metrics.grad_norm:.2f}  "
            f"learning rate {metrics.learning_rate:.2e}",
            file=sys.stderr,
            flush=True,
        )
