"""Short options that stand for settings: `--samples 4` is `--eval.samples=4`.

A command names the tree of its settings and its short options; their help is the text of the settings, and
what is given is read, checked and told as any other setting.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from agentrl.config.presets import ALGORITHMS
from agentrl.config.tree import hint_at, plain, sections_of, texts_of

T = TypeVar("T")


class _Setting(argparse.Action):
    """Keeps the flag that an option stands for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        flag = f"--{self.const}" if values == [] else f"--{self.const}={values}"
        namespace.settings = [*namespace.settings, flag]


def add_settings(parser: argparse.ArgumentParser, root: type, short: Mapping[str, str]) -> None:
    """Let a command take the settings of a tree.

    Args:
        parser: of the command.
        root: dataclass of the tree.
        short: setting that each short option stands for, `model.path`, or with a value, `eval.tools=false`.
    """
    parser.set_defaults(takes_settings=root, settings=[])
    groups: dict[str, Any] = {}
    for name, target in short.items():
        key, constant, _ = target.partition("=")
        section = key.partition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"short for --{section}.*")
        groups[section].add_argument(
            f"--{name.replace('_', '-')}",
            action=_Setting,
            nargs=0 if constant else None,
            const=target,
            dest="settings",
            default=argparse.SUPPRESS,
            metavar=None if constant else _metavar(hint_at(root, key)),
            help=f"{setting_text(root, key)} (--{target})".replace("%", "%%"),
        )


def settings_of(root: type[T], argument: str, key: str, flags: Sequence[str]) -> T:
    """Settings of a command whose argument is their file (.toml), or stands for the setting `key`.

    Raises:
        ConfigError: as `loading.load`.
    """
    from agentrl.config import loading

    if argument.endswith(".toml"):
        return loading.load(root, Path(argument), flags)
    return loading.load(root, None, [f"--{key}={argument}", *flags])


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Let a command that takes the settings of a run take a preset."""
    parser.add_argument(
        "--preset",
        action=_Setting,
        const="preset",
        dest="settings",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"settings of a published algorithm, below those of file and flags: {', '.join(ALGORITHMS)}",
    )


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    if typing.get_origin(hint) is dict:
        return "NAME=VALUE"
    return {int: "N", float: "X"}.get(plain(hint), "VALUE")


def setting_text(root: type, key: str) -> str:
    """What a setting means, in one line."""
    section, setting, *below = key.split(".")
    text = texts_of(sections_of(root)[section]).get(setting, "").replace("`", "")
    return f"{' '.join(below)}: {text}" if below else text
