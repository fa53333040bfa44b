"""`agentrl parts`: what a kind may name, with the settings that each part has."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from agentrl.cli.command import add_command
from agentrl.config import loading, registry, tree
from agentrl.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "parts", "list what settings may name, and the settings of each")
    families = ", ".join(registry.BUILT_IN)
    parser.add_argument(
        "parts", nargs="*", metavar="FILE.py:NAME", help="parts of your own; they need --kind"
    )
    parser.add_argument("--kind", metavar="FAMILY", help=f"one of {families}; all by default")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """List parts.

    Raises:
        ConfigError: there is no such family or part.
    """
    if arguments.parts and not arguments.kind:
        raise ConfigError(
            f"say what {arguments.parts[0]} is: --kind with one of {', '.join(registry.BUILT_IN)}"
        )
    for family in [arguments.kind] if arguments.kind else registry.BUILT_IN:
        for kind in arguments.parts or registry.kinds(family):
            print("\n".join(describe(registry.declared(family, kind))), end="\n\n")
        if not arguments.parts and not registry.kinds(family):
            print(f"{family}: none comes with agentrl; name one in a file, `my.py:Name`\n")
    return 0


def describe(part: registry.Declaration) -> Iterator[str]:
    """A part in lines: what it is, what it requires, its settings."""
    text = part.text.strip() or "(no docstring)"
    yield f"{part.family} {part.kind}: {text.splitlines()[0]}"
    if part.provenance:
        yield f"    source: {part.provenance}"
    for name in part.requires:
        yield f"    requires {name}: {registry.REQUIREMENTS[name]}"
    defaults = part.defaults()
    for name, hint in tree.own_hints(part).items():
        default = f" = {loading.literal(defaults[name])}" if name in defaults else " (needed)"
        yield f"    {name}{default}    {tree.describe_type(hint)}. {part.texts.get(name, '')}".rstrip()
