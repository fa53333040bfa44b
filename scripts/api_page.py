"""Writes docs/api.md from the names of `agentrl` and what they say of themselves (`make docs`)."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import docstring_parser

import agentrl
from agentrl.config import registry

HEAD = """# Python reference

Every name that `agentrl` offers, with its signature and what it says of itself. The examples run as tests.
How they go together: [From Python](python.md). What a class of an environment may do: [Environments](environments.md).
This page is made by `scripts/api_page.py`; a test keeps it current.
"""
CHAPTERS = {
    "Runs": ("train", "resume", "replay", "Run", "Replayed", "load_settings", "Settings"),
    "Episodes": ("run_episode", "episodes", "Episode", "ReadableEpisode", "Token"),
    "Evaluation": ("evaluate", "Evaluation"),
    "Environments": ("Env", "tool", "function_env", "Finish", "ToolError", "register"),
    "Errors": ("AgentRLError", "ConfigError", "EnvError", "Interrupted"),
}
INSIDE = frozenset(
    {"aclose", "call_tools", "play_out", "plays", "respond", "score", "spoke", "start", "compact_context"}
)
"""Methods of `Env` that the rollout calls, and users do not."""
OWN = "agentrl"
"""Methods of classes of other packages (`Exception`) are left out."""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in CHAPTERS.items():
        parts += [f"## {title}\n", *(line for name in names for line in entry(name))]
    return "\n".join(parts)


def entry(name: str) -> Iterator[str]:
    """A function or a class."""
    value = getattr(agentrl, name)
    kind = "class " if inspect.isclass(value) else ""
    yield f"### `{name}`\n"
    if kind and issubclass(value, BaseException):
        yield f"An exception, of {', '.join(f'`{base.__name__}`' for base in value.__bases__)}.\n"
    elif not hasattr(value, "__dataclass_fields__"):
        yield f"```text\n{kind}{signature(name, value)}\n```\n"
    yield from described(inspect.getdoc(value) or "")
    if kind:
        yield from attributes(value)
        yield from methods(value)


def signature(name: str, value: Any) -> str:
    """How it is called; over several lines where one is too long."""
    given = inspect.signature(value)
    shown: list[str] = []
    before = None
    for one in given.parameters.values():
        if before == one.POSITIONAL_ONLY != one.kind:
            shown.append("/")
        if one.kind == one.KEYWORD_ONLY != before:
            shown.append("*")
        shown.append(parameter(one))
        before = one.kind
    if before == inspect.Parameter.POSITIONAL_ONLY:
        shown.append("/")
    back = given.return_annotation
    end = "" if back is inspect.Signature.empty or inspect.isclass(value) else f" -> {typed(back)}"
    line = f"{name}({', '.join(shown)}){end}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){end}"


def parameter(one: inspect.Parameter) -> str:
    """A parameter with its type and default."""
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    hint = "" if one.annotation is one.empty else f": {typed(one.annotation)}"
    return f"{stars}{one.name}{hint}" + ("" if one.default is one.empty else f" = {one.default!r}")


def typed(hint: Any) -> str:
    """A type as one writes it."""
    return re.sub(
        r"\b(typing|collections\.abc)\.",
        "",
        hint if isinstance(hint, str) else inspect.formatannotation(hint),
    )


def described(text: str) -> Iterator[str]:
    """A docstring: its text, what it is given, what it raises, its example."""
    found = docstring_parser.parse(text, docstring_parser.DocstringStyle.GOOGLE)
    for one in (found.short_description, found.long_description):
        if one:
            yield f"{paragraphs(one)}\n"
    rows = [(f"`{one.arg_name}`", one.description) for one in found.params]
    rows += [(f"raises `{one.type_name}`", one.description) for one in found.raises]
    if rows:
        yield "| | |\n|---|---|"
        yield from (f"| {name} | {cell(meaning)} |" for name, meaning in rows)
        yield ""
    for example in found.examples:
        yield f"```pycon\n{textwrap.dedent(example.description or '')}\n```\n"


def paragraphs(text: str) -> str:
    """Text with a line for each paragraph."""
    return "\n\n".join(" ".join(one.split()) for one in text.split("\n\n"))


def cell(text: str | None) -> str:
    """Text in a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def attributes(kind: type) -> Iterator[str]:
    """Fields and class attributes with their texts."""
    rows: dict[str, str] = {}
    for one in homes(kind):
        node = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(node, ast.ClassDef)
        texts = registry.field_texts(node)
        for item in (item for item in node.body if isinstance(item, ast.AnnAssign)):
            name, hint = ast.unparse(item.target), ast.unparse(item.annotation)
            if name[0] != "_":
                hint = hint.removeprefix("ClassVar[").removesuffix("]") if "ClassVar" in hint else hint
                rows[f"`{cell(f'{name}: {hint}')}`"] = cell(texts.get(name))
    yield from listed("attribute", rows)


def methods(kind: type) -> Iterator[str]:
    """Methods and properties that a user calls or writes, with the first paragraph of what they say."""
    rows: dict[str, str] = {}
    for home in homes(kind):
        for name, own in vars(home).items():
            value = getattr(home, name, None)
            text = inspect.getdoc(own.__func__ if isinstance(own, classmethod) else own)
            made = isinstance(own, property | cached_property) or (
                callable(value) and not inspect.isclass(value)
            )
            if (
                name[0] == "_"
                or (home is agentrl.Env and name in INSIDE)
                or not made
                or not text
                or "Called by the rollout" in text
            ):
                continue
            call = (
                signature("", value).replace("(self, ", "(").replace("(self)", "()")
                if callable(value)
                else ""
            )
            rows[f"`{cell(name + call)}`"] = cell(text.split("\n\n")[0])
    yield from listed("method or property", rows)


def homes(kind: type) -> list[type]:
    """The class and those it goes on from, without those that have an entry of their own."""
    apart = {getattr(agentrl, name) for names in CHAPTERS.values() for name in names} - {kind}
    known = {base for other in kind.__mro__ if other in apart for base in other.__mro__}
    return [one for one in reversed(kind.__mro__) if one.__module__.startswith(OWN) and one not in known]


def listed(title: str, rows: dict[str, str]) -> Iterator[str]:
    """A table of names and texts; nothing where there are none."""
    if rows:
        yield f"| {title} | |\n|---|---|"
        yield from (f"| {name} | {text} |" for name, text in rows.items())
        yield ""


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/api.md").write_text(page())
