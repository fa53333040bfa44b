"""Measures the shape of the code: circles of imports, rooms, lines, lengths of functions, duplicates.

`python scripts/house.py [FOLDER]` prints two tables for the tree in FOLDER (default: this one): the whole, and
each room by what its lines are: code, docstrings (those of settings included), comments, blanks. Imports inside of
functions and those for type checkers count like all others.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {"agentrl": ".", "agentrl_envs": "envs", "agentrl_sandbox": "sandbox"}
WINDOW = 6
KINDS = ("code", "docstring", "comment", "blank")

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the three packages, by dotted name."""
    found = {}
    for package, place in PACKAGES.items():
        for path in sorted((root / place / package).rglob("*.py")):
            parts = path.relative_to(root / place).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a module imports."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield from (one for one in (whole if whole in known else source,) if one in known)


def import_graph(files: dict[str, Path]) -> Graph:
    """Module -> modules that it imports, itself left out."""
    return {name: set(imported(name, path, files)) - {name} for name, path in files.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for name in graph:
        if name not in index:
            visit(name)
    return found


def room(name: str, files: dict[str, Path]) -> str:
    """The folder that a module stands in; a file at the root of a package is a room of its own."""
    parts = name.split(".")
    if parts[0] != "agentrl" or len(parts) < 2:
        return parts[0]
    return ".".join(parts[:2])


def between_rooms(graph: Graph, files: dict[str, Path]) -> Graph:
    """The same graph, of rooms."""
    rooms: Graph = defaultdict(set)
    for name, others in graph.items():
        here = room(name, files)
        rooms[here] |= {room(other, files) for other in others} - {here}
    return {name: {other for other in others if other in rooms} for name, others in rooms.items()}


def function_lengths(files: dict[str, Path]) -> list[int]:
    """Lines of every function, decorators and docstring left out, in order of length."""
    found = []
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                found.append((node.end_lineno or node.lineno) - body[0].lineno + 1)
    return sorted(found)


def split(text: str) -> Counter[str]:
    """Lines of a source text by what they are, of `KINDS`."""
    lines = text.splitlines()
    kinds = ["code" if line.strip() else "blank" for line in lines]
    for at, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            kinds[at] = "comment"
    for node in ast.walk(ast.parse(text)):
        # A text that stands alone: the docstring of a module, a class, a function or a setting.
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            kinds[first:last] = ["docstring"] * (last - first)
    return Counter(kinds)


def rooms_table(files: dict[str, Path]) -> list[str]:
    """Rows of a table: lines of each room by what they are, the largest room first."""
    rooms: dict[str, Counter[str]] = defaultdict(Counter)
    for name, path in files.items():
        rooms[".".join(name.split(".")[:2])] += split(path.read_text())
    rows = [
        ("all", sum(rooms.values(), Counter[str]())),
        *sorted(rooms.items(), key=lambda one: -one[1].total()),
    ]
    return [
        f"| {name} | {found.total():,} | " + " | ".join(f"{found[kind]:,}" for kind in KINDS) + " |"
        for name, found in rows
    ]


def duplicates(files: dict[str, Path]) -> int:
    """Pairs of places with `WINDOW` equal lines in a row; imports, blank lines and comments do not count."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, path in files.items():
        lines = [(n, line.strip()) for n, line in enumerate(path.read_text().splitlines())]
        kept = [
            (n, line)
            for n, line in lines
            if len(line) > 3 and not line.startswith(("#", "from ", "import ", '"', "@"))
        ]
        for at in range(len(kept) - WINDOW + 1):
            places[tuple(line for _, line in kept[at : at + WINDOW])].append((name, kept[at][0]))
    pairs, before = 0, set[tuple[str, str, int]]()
    for found in places.values():
        for i, (one, n) in enumerate(found):
            for other, m in found[i + 1 :]:
                key = (one, other, m - n)
                pairs += key not in before
                before.add(key)
    return pairs


def report(root: Path) -> str:
    """The tables."""
    files = modules(root)
    graph = import_graph(files)
    lengths = function_lengths(files)
    rows = {
        "modules": len(files),
        "lines of Python": sum(len(path.read_text().splitlines()) for path in files.values()),
        "flat files at the root of agentrl": len(list((root / "agentrl").glob("*.py"))),
        "circles of modules": len(circles(graph)),
        "circles of rooms": len(circles(between_rooms(graph, files))),
        "functions": len(lengths),
        "lines of the median function": lengths[len(lengths) // 2],
        "lines of the 95th percentile": lengths[len(lengths) * 95 // 100],
        "functions of more than 60 lines": sum(n > 60 for n in lengths),
        f"pairs of places with {WINDOW} equal lines": duplicates(files),
    }
    table = [f"| {name} | {value:,} |" for name, value in rows.items()]
    named = [", ".join(circle) for circle in circles(graph)]
    head = ["", "| room | lines | " + " | ".join(KINDS) + " |", "|---" * (2 + len(KINDS)) + "|"]
    rooms = [*head, *rooms_table(files)]
    return "\n".join(["| what | number |", "|---|---|", *table, *(f"circle: {one}" for one in named), *rooms])


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]))
