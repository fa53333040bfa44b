"""`agentrl export`: copy the weights of a run, or of its newest checkpoint, as a Hugging Face folder."""

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
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("target", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--version", type=number(Number), help="policy version; by default the newest, a checkpoint's too"
    )
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Copy the weights."""
    from agentrl.errors import ConfigError
    from agentrl.inference.run_weights import run_weights
    from agentrl.storage.durable import whole_folder

    if options.target.exists():
        raise ConfigError(f"{options.target} exists; name a folder that does not")
    source = run_weights(options.run, options.version)
    with whole_folder(options.target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    print(f"{source} -> {options.target}")
    return 0
