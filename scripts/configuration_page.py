"""Writes docs/configuration.md from the settings' own documentation (`make docs`)."""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from dataclasses import MISSING, fields
from pathlib import Path

from agentrl.config import settings as sections
from agentrl.config.loading import describe_type, section_type, shipped
from agentrl.config.settings import Settings

HEAD = """# Settings

One TOML file, and the same names as flags: `agentrl train run.toml --learner.learning_rate=1e-5`. Unknown or misspelt names are errors that name the
file, the line and the nearest known name. The resolved settings of a run are in its `config.toml`. This page is made from `agentrl/config/settings.py` by
`scripts/configuration_page.py`; a test keeps it current.
"""


def own_rows(section: str) -> list[str]:
    """Rows of the settings that the package's own parts add to a section."""
    rows = []
    for part in shipped(section):
        defaults = part.defaults()
        for name, hint in (
            typing.get_type_hints(part.settings, include_extras=True) if part.settings else {}
        ).items():
            rows.append(
                f"| `{section}.{name}` | {describe_type(hint)} | `{defaults[name]!r}` | `{part.kind}` only: "
                f"{part.texts[name]} |"
            )
    return rows


def documentation() -> dict[str, dict[str, str]]:
    """Text under each field of each settings class."""
    tree = ast.parse(inspect.getsource(sections))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {"": ast.get_docstring(node) or ""})
            for field, text in zip(node.body, node.body[1:], strict=False):
                is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                    texts[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[attr-defined]
    return found


def page() -> str:
    """The whole page."""
    texts = documentation()
    parts = [HEAD]
    for section in fields(Settings):
        kind = section_type(section.name)
        hints = typing.get_type_hints(kind, dict(vars(sections)), include_extras=True)
        parts.append(
            f"## {texts[kind.__name__]['']}\n\n| setting | type | default | meaning |\n|---|---|---|---|"
        )
        for field in fields(kind):
            if field.name == "own":
                parts += own_rows(section.name)
                continue
            made = field.default_factory() if field.default_factory is not MISSING else field.default
            default = f"`{made!r}`" if isinstance(made, str | int | float | bool | tuple) else ""
            meaning = texts[kind.__name__].get(field.name, "").replace("|", "\\|")
            parts.append(
                f"| `{section.name}.{field.name}` | {describe_type(hints[field.name])} | {default} | {meaning} |"
            )
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/configuration.md").write_text(page())
