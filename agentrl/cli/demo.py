"""`agentrl demo`: a small configuration of `agentrl train`, with a model that ships in the package."""

from __future__ import annotations

import argparse
from typing import Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_preset, add_settings
from agentrl.config.settings import Settings


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(
        subparsers, "demo", "a small model learns to use Python, on this machine, in a few minutes"
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    parser.add_argument(
        "--shuffle-rewards",
        action="store_true",
        help="control: deal the rewards of each batch out anew, so that there is nothing to learn",
    )
    add_settings(
        parser,
        Settings,
        {"seed": "run.seed", "steps": "run.steps", "name": "run.name", "cluster": "cluster.kind"},
    )
    add_preset(parser)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Train the model of the demo."""
    from agentrl.cli.train import sentence
    from agentrl.config import bundled, loading
    from agentrl.report.terminal import progress
    from agentrl.training.parts import Options
    from agentrl.training.train import train

    flags = [f"--model.path={bundled.MODEL}", *options.settings]
    settings = loading.load_settings(bundled.SETTINGS, flags)
    with progress(quiet=options.quiet) as live:
        summary = train(
            settings,
            Options(listeners=(live.row,), on_ready=live.line, shuffle_rewards=options.shuffle_rewards),
        )
    print(sentence(summary))
    return 0
