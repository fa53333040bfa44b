"""`agentrl export`: the weights of a run or an adapter as a Hugging Face folder, or a run's adapter apart."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from agentrl.cli.command import add_command
from agentrl.config.ranges import Number, number


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "export", "copy a run's weights as a Hugging Face folder")
    parser.add_argument("run", type=Path, help="folder of the run, or of an adapter to merge into its model")
    parser.add_argument("target", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--version", type=number(Number), help="policy version; by default the newest, a checkpoint's too"
    )
    parser.add_argument(
        "--best", action="store_true", help="the version with the best held-out score (checkpoint.best)"
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="the adapter that the run learned apart, as peft and vLLM read it",
    )
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Copy the weights, or merge an adapter."""
    from agentrl.errors import ConfigError
    from agentrl.storage.durable import whole_folder
    from agentrl.weights.adapter_files import is_adapter
    from agentrl.weights.model_files import write_merged

    if options.target.exists():
        raise ConfigError(f"{options.target} exists; name a folder that does not")
    if is_adapter(options.run):
        if options.adapter or options.best or options.version is not None:
            raise ConfigError(
                f"{options.run} is an adapter already: --adapter, --best and --version are for runs"
            )
        with whole_folder(options.target) as folder:
            write_merged(options.run, folder)
        print(f"{options.run}, merged -> {options.target}")
        return 0
    source = _source(options)
    with whole_folder(options.target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    print(f"{source} -> {options.target}")
    return 0


def _source(options: argparse.Namespace) -> Path:
    from agentrl.errors import ConfigError
    from agentrl.inference.run_weights import best_weights, run_weights

    if options.best and options.version is not None:
        raise ConfigError("--best and --version name one version each: give one of them")
    weights = best_weights(options.run) if options.best else run_weights(options.run, options.version)
    if not options.adapter:
        return weights
    if not (weights / "adapter").is_dir():
        raise ConfigError(f"{options.run} learned all weights: it has no adapter (learner.adapter.rank is 0)")
    return weights / "adapter"
