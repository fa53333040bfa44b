"""Writes docs/algorithms/ from what the parts say of themselves (`make docs`)."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from agentrl.config import registry
from agentrl.config.presets import ALGORITHMS
from agentrl.config.tree import describe_type, own_hints
from agentrl_envs import load_env

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "loss": "Losses",
    "estimator": "Estimators",
    "shaper": "Shapers",
    "sampler": "Samplers",
    "tracker": "Trackers",
    "aggregator": "Aggregators",
    "controller": "Controllers",
}
MADE = "This page is made by `scripts/algorithm_pages.py`; a test keeps it current."

NOT_SHIPPED = {
    "ETR (2601.03723), FiberPO, WS-GRPO": "formula not found",
    "COPO (2508.04138)": "global reward and constants not found",
    "DPPO pruning (2603.04135)": "rule of keeping not found",
    "GRPO-VPS (2604.20659)": "weight of a segment's gain not found",
    "ProGRPO (2602.05281)": "its alpha was not found (looked for twice), and it needs log-probabilities of the prompt",
    "EARL": "threshold of its gate not found",
    "SRPO (2604.02288)": "weights of its distillation not found",
    "SSL (2601.22491)": "tiers for maths not found",
    "MDPO, INPO, BVPO, PFPO": "not read in full",
    "POISE (2605.07579)": "formula known; engines and learners hand on no hidden states; with tokens of the prompt: "
    "`prompt_prior.py`",
    "CAPO (curvature, 2510.00819)": "closed forms of its curvature not found",
    "T-PPO, AsyPPO, POAD": "need a critic",
    "FAPO, CAPO (GenPRM)": "need a judge's server",
    "GTPO's conflict tokens": "compare completions of one prompt token by token; its entropy filter is the loss `gtpo`",
}


def part_lines(part: registry.Declaration) -> list[str]:
    """A part: its text, what it requires, its settings."""
    lines = [f"## `{part.kind}`", "", *paragraphs(inspect.cleandoc(part.text))]
    for name in part.requires:
        lines += [f"Requires {name}: {registry.REQUIREMENTS[name]}.", ""]
    if part.settings is not None:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        defaults = part.defaults()
        lines += [
            f"| `{part.family}.{name}` | {describe_type(hint)} | `{defaults.get(name, 'needed')!r}` | "
            f"{part.texts.get(name, '').replace('|', chr(92) + '|')} |"
            for name, hint in own_hints(part).items()
        ]
        lines.append("")
    return lines


def paragraphs(text: str) -> list[str]:
    """Each paragraph on a line, with a line between."""
    lines: list[str] = []
    for one in text.split("\n\n"):
        flat = " ".join(one.split()).replace("|", "\\|")
        lines += [flat, ""]
    return lines


def family_page(family: str, title: str) -> str:
    """All parts of a family."""
    lines = [f"# {title}", "", f"What `{family}.kind` may name. {MADE}", ""]
    for kind in registry.BUILT_IN[family]:
        lines += part_lines(registry.declared(family, kind))
    return "\n".join(lines)


def presets_page() -> str:
    """What each preset stands for."""
    lines = ["# Presets", "", f'`--preset NAME`, or `preset = "NAME"` at the top of the file. {MADE}', ""]
    lines += ["| preset | settings | source |", "|---|---|---|"]
    for name, preset in ALGORITHMS.items():
        shown = ", ".join(f"`{key}={value}`" for key, value in preset.values.items())
        lines.append(f"| `{name}` | {shown} | {preset.source} |")
    return "\n".join([*lines, ""])


def methods_page() -> str:
    """Methods that are files, and those that are not here."""
    lines = ["# Methods as files, and what is not shipped", "", f"Files of `examples/methods`. {MADE}", ""]
    for path in sorted((ROOT / "examples" / "methods").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        head = inspect.cleandoc(text.split('"""')[1])
        lines += [f"## `{path.name}`", "", *method_head(head)]
        for family, name in re.findall(r"--(\w+)\.kind examples/methods/\S+?:(\w+)", head):
            part = registry.declared(family, f"{path}:{name}")
            lines += [f"**{family} `{name}`.** " + paragraphs(inspect.cleandoc(part.text))[0], ""]
            lines += paragraphs(inspect.cleandoc(part.text))[2:]
        for name in re.findall(r"--env\.name examples/methods/\S+?:(\w+)", head):
            text = inspect.cleandoc(load_env(f"{path}:{name}").__doc__ or "")
            lines += [f"**environment `{name}`.** " + paragraphs(text)[0], ""]
    lines += ["## Not shipped", "", "| method | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in NOT_SHIPPED.items()]
    return "\n".join([*lines, ""])


def method_head(head: str) -> list[str]:
    """The text of a file, its commands as code."""
    lines: list[str] = []
    for one in head.split("\n\n"):
        if one.startswith(("agentrl ", "python ")):
            lines += ["```bash", *one.splitlines(), "```", ""]
        else:
            lines += paragraphs(one)
    return lines


def pages() -> dict[str, str]:
    """Each page by its name."""
    made = {f"{family}.md": family_page(family, title) for family, title in FAMILIES.items()}
    made |= {"presets.md": presets_page(), "methods.md": methods_page()}
    index = ["# Algorithms", "", f"{MADE} How a part of your own is written: [parts](../parts.md).", ""]
    index += [f"- [{name.removesuffix('.md')}]({name})" for name in made]
    return made | {"README.md": "\n".join([*index, ""])}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "algorithms"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
