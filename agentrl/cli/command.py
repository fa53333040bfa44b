"""A command of `agentrl`: how each stands in the help."""

from __future__ import annotations

import argparse
from typing import Any


def add_command(
    subparsers: Any, name: str, text: str, epilog: str | None = None, *, description: str | None = None
) -> argparse.ArgumentParser:
    """A parser for the command `name`.

    `text` is its line in the list of commands; `description` and `epilog` (examples) stand in its own help.
    """
    return subparsers.add_parser(
        name,
        help=text,
        allow_abbrev=False,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
