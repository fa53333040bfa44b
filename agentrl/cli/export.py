"""`agentrl export`: copy the newest weights of a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from agentrl.ranges import Number, number


def add_parser(subparsers: argparse._SubParsersAction) -> None:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = subparsers.add_parser("export", help="copy a run's weights as a Hugging Face folder")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("target", type=Path, help="folder to write; must not exist")
    parser.add_argument("--version", type=number(Number), help="policy version; the newest by default")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Copy the weights."""
    import shutil

    from agentrl.errors import ConfigError
    from agentrl.run_folder import RunFolder

    folder = RunFolder.open(options.run)
    if options.version is None:
        source = folder.newest_weights()
        if source is None:
            raise ConfigError(
                f"{options.run} has no weights yet; they are written at the end of a run, "
                "or every checkpoint.weights_every steps"
            )
    else:
        source = folder.weights / f"step_{options.version}"
        if not source.is_dir():
            have = ", ".join(sorted(path.name for path in folder.weights.glob("step_*"))) or "none"
            raise ConfigError(f"{options.run} has no weights of version {options.version}; it has: {have}")
    if options.target.exists():
        raise ConfigError(f"{options.target} exists; name a folder that does not")
    shutil.copytree(source, options.target)
    print(f"{source} -> {options.target}")
    return 0
