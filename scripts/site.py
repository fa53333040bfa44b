"""Hooks of the documentation site (`mkdocs.yml`): README.md is its home, and what a page links to is in it.

Pages of `docs/` link to examples, folders of results and other files of the repository, which a site made of
`docs/` alone would not have. Each of them becomes a page of its own, so that every link is good in the
repository and on the site.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".json": "json"}
CHARTS = ("uPlot.iife.min.js", "uPlot.min.css")
"""The library of charts that the page of a run has too."""
SOURCES: dict[str, Path] = {}
"""Where the text of a page stands in the repository (of a list of files: would stand), by its place on the site."""


def on_config(config: Any) -> None:
    """Every decision is in the navigation, newest last; a page that nobody put there is under Reference."""
    sections = {name: pages for section in config.nav for name, pages in section.items()}
    sections["Decisions"] += sorted(f"adr/{path.name}" for path in DOCS.glob("adr/0*.md"))
    named = re.findall(r"[\w/-]+\.md", repr(config.nav))
    sections["Reference"] += sorted(path.name for path in DOCS.glob("*.md") if path.name not in named)


def on_files(files: Files, config: Any) -> None:
    """Add a page for everything that is linked to and not there."""
    from mkdocs.structure.files import File

    texts = {place_of(path): (path, path.read_text()) for path in (ROOT / "README.md", *DOCS.rglob("*.md"))}
    left = list(texts)
    while left:
        path, text = texts[left.pop()]
        for target in targets(path, text):
            place = place_of(target)
            if place not in texts and (target.is_dir() or not target.is_relative_to(DOCS)):
                texts[place] = (target / "README.md" if target.is_dir() else target, page_text(target))
                left.append(place)
    for name in CHARTS:
        kept = (ROOT / "agentrl/report/static/vendor" / name).read_text()
        files.append(File.generated(config, f"assets/{name}", content=kept))
    for place, (path, text) in texts.items():
        SOURCES[place] = path
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, content=text))


CURVES = re.compile(r"<!-- curves: (\w+) -->\n!\[.*?\]\(.*?\)")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Tables scroll by themselves where they are wider than the page."""
    return html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def curves(found: re.Match[str]) -> str:
    """A chart to point at in place of the picture that the repository shows."""
    x, series = {"demo": demo_curves, "spo_vs_grpo": study_curves}[found[1]]()
    data = json.dumps({"x": x, "series": series}).replace("'", "&#39;")
    return f"<div class='curves' data-curves='{data}'></div>"


def demo_curves() -> tuple[str, dict[str, list[list[float]]]]:
    """Mean score of each batch, by seed: (name of x, [x, y] by name)."""
    series = {}
    for path in sorted((DOCS / "results/demo").glob("seed*/metrics.jsonl")):
        rows = [row for line in path.read_text().splitlines() if (row := json.loads(line))["kind"] == "step"]
        series[path.parent.name.replace("seed", "seed ")] = [
            [row["version"] for row in rows],
            [round(row["reward_mean"], 4) for row in rows],
        ]
    return "policy version", series


def study_curves() -> tuple[str, dict[str, list[list[float]]]]:
    """Mean over seeds of the held-out reward at every thousand tokens, by arm."""
    places = list(range(0, 28_001, 1000))
    arms = {"SPO": "spo", "GRPO, groups of 8": "grpo_groups_of_8", "SPO, no baseline": "spo_no_baseline"}
    series = {}
    for title, name in arms.items():
        runs = [
            json.loads(path.read_text())["evals"]
            for path in sorted((DOCS / "results/spo_vs_grpo/ablations").glob(f"{name}_seed*.json"))
        ]
        means = [sum(at(run, place) for run in runs) / len(runs) for place in places]
        series[title] = [places, [round(mean, 4) for mean in means]]
    return "generated tokens", series


def at(evaluations: list[dict[str, float]], tokens: int) -> float:
    """The reward at so many tokens, on the line between the evaluations beside it; the last one beyond."""
    for one, other in pairwise(evaluations):
        if one["tokens"] <= tokens <= other["tokens"]:
            part = (tokens - one["tokens"]) / max(1, other["tokens"] - one["tokens"])
            return one["reward"] + part * (other["reward"] - one["reward"])
    return evaluations[-1]["reward"]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links of the repository lead to pages of the site."""
    place = page.file.src_uri
    source = SOURCES[place]

    def there(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if not target.exists():
            return found[0]  # mkdocs says so, and the build fails
        return f"]({relpath(place_of(target), Path(place).parent)}{found[2] or ''})"

    return LINK.sub(there, CURVES.sub(curves, markdown))


def targets(path: Path, text: str) -> list[Path]:
    """Files and folders of the repository to which a text links."""
    found = [(path.parent / one[1]).resolve() for one in LINK.finditer(text)]
    return [target for target in found if target.exists() and target.is_relative_to(ROOT)]


def place_of(target: Path) -> str:
    """Where the site has a file or a folder of the repository."""
    if target == ROOT / "README.md":
        return "index.md"
    inside = target.is_relative_to(DOCS)
    name = target.relative_to(DOCS).as_posix() if inside else f"files/{target.relative_to(ROOT).as_posix()}"
    if target.is_dir():
        return f"{name}/README.md"
    return name if inside or target.suffix == ".md" else f"{name}.md"


def page_text(target: Path) -> str:
    """A page for a file as it is, or a list of what is in a folder."""
    title = f"# {target.relative_to(ROOT).as_posix()}\n\n"
    if target.is_dir():
        if (target / "README.md").exists():
            return (target / "README.md").read_text()
        names = sorted(path.name for path in target.iterdir() if not path.name.startswith(("_", ".")))
        return title + "\n".join(f"- [{name}]({name})" for name in names)
    text = target.read_text()
    if target.suffix == ".md":
        return text
    if target.suffix == ".ipynb":
        return title + "\n\n".join(cell_text(cell) for cell in json.loads(text)["cells"])
    return f"{title}````{LANGUAGES.get(target.suffix, 'text')}\n{text}\n````\n"


def cell_text(cell: dict[str, Any]) -> str:
    """A cell of a notebook, without its output."""
    text = "".join(cell["source"])
    return f"````python\n{text}\n````" if cell["cell_type"] == "code" else text.replace("\n#", "\n##")
