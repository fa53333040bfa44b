"""Writes docs/configuration.md from the settings' own documentation (`make docs`)."""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from pathlib import Path

from agentrl.cli import check
from agentrl.config.settings import Settings
from agentrl.config.tree import describe_type, hints_of, own_hints, sections_of, shipped, texts_of
from agentrl.evaluation.settings import SHORT, Experiment
from agentrl.training import sft
from agentrl.training.sft import SftSettings

HEAD = """# Settings

One TOML file, and the same names as flags: `agentrl train run.toml --learner.learning_rate=1e-5`. Unknown or misspelt names are errors that name the
file, the line and the nearest known name. The resolved settings of a run are in its `config.toml`. `agentrl eval`, `agentrl sft` and `agentrl check` speak
the same language: their settings are at the end of this page, and `agentrl eval eval.toml --samples=8` works as `train` does. This page is made by
`scripts/configuration_page.py` from the declarations; a test keeps it current.
"""

COMMANDS = {
    "eval": (Experiment, SHORT),
    "sft": (SftSettings, sft.SHORT),
    "check": (check.CheckSettings, check.SHORT),
}
"""Commands besides `train`, with their trees and short options."""


def own_rows(section: str, kind: type) -> list[str]:
    """Rows of the settings that the package's own parts add to a section."""
    return [
        f"| `{section}.{name}` | {describe_type(hint)} | `{part.defaults()[name]!r}` | `{part.kind}` only: "
        f"{part.texts[name]} |"
        for part in shipped(kind)
        for name, hint in own_hints(part).items()
    ]


def section_lines(section: str, kind: type) -> list[str]:
    """A section with a table of its settings."""
    texts, hints = texts_of(kind), hints_of(kind)
    lines = [f"## {texts['']}\n\n| setting | type | default | meaning |\n|---|---|---|---|"]
    for field in fields(kind):
        if field.name == "own":
            lines += own_rows(section, kind)
            continue
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        default = f"`{made!r}`" if isinstance(made, str | int | float | bool | tuple) else ""
        meaning = texts.get(field.name, "").replace("|", "\\|")
        lines.append(
            f"| `{section}.{field.name}` | {describe_type(hints[field.name])} | {default} | {meaning} |"
        )
    return [*lines, ""]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section, kind in sections_of(Settings).items():
        parts += section_lines(section, kind)
    for command, (tree, short) in COMMANDS.items():
        names = "; ".join(f"`--{name.replace('_', '-')}` is `--{target}`" for name, target in short.items())
        parts.append(f"# `agentrl {command}`\n\nShort options: {names}.\n")
        for section, kind in sections_of(tree).items():
            if section in sections_of(Settings) and kind is sections_of(Settings)[section]:
                parts.append(f"## `[{section}]`: as for `agentrl train`\n")
            else:
                parts += section_lines(section, kind)
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/configuration.md").write_text(page())
