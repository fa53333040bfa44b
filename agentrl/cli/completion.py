"""`agentrl completion`: a script with which a shell completes commands, options and settings."""

from __future__ import annotations

import argparse
import typing
from typing import Any, Literal

from agentrl.cli.command import add_command
from agentrl.cli.options import setting_text
from agentrl.config.tree import all_keys, hint_at, plain

SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
where it goes:
  bash   agentrl completion bash > ~/.local/share/bash-completion/completions/agentrl
  zsh    agentrl completion zsh > ~/.zfunc/_agentrl      (with fpath+=~/.zfunc before compinit in ~/.zshrc)
  fish   agentrl completion fish > ~/.config/fish/completions/agentrl.fish
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(subparsers, "completion", "a script that completes commands in a shell", EPILOG)
    parser.add_argument("shell", choices=SHELLS, help="whose script is printed")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from agentrl.cli.main import whole_parser

    parser = whole_parser()
    for command in _commands(parser):
        _add_settings(command)
        for action in command._actions:
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE  # pyrefly: ignore[missing-attribute]
    print(shtab.complete(parser, options.shell))
    return 0


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of all commands, and of commands of commands."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += [command, *_commands(command)]
    return found


def _add_settings(command: argparse.ArgumentParser) -> None:
    """Make settings options of a parser that is never asked to parse: `main` reads them before."""
    root = command.get_default("takes_settings")
    for key in [] if root is None else all_keys(root):
        text = setting_text(root, key).partition(". ")[0].replace("%", "%%")
        command.add_argument(f"--{key}", choices=_choices(root, key), help=text or key)


def _choices(root: type, key: str) -> tuple[str, ...] | None:
    hint = hint_at(root, key)
    if plain(hint) is bool:
        return ("true", "false")
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    return None
