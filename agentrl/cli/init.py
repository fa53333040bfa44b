"""`agentrl init`: write a small project, or an environment file alone, to start from."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentrl.cli.command import add_command

PROJECTS = Path(__file__).with_name("projects")
KINDS = {
    "tools": "tools are methods; an interpreter of Python to begin with",
    "game": "several turns that the environment answers",
    "data": "problems from a file, with answers to compare with",
    "agent": "a program that speaks OpenAI's protocol is the agent",
}
"""Of projects."""
ROWS, HELD_OUT = 200, 64
GAME_RANGE = 400

TEMPLATE = '''\
"""What the agent is asked, which tools it has, and what is paid.

    agentrl check {file}                                   tries to break it; needs no model
    agentrl train {file}                                   learns as it is, with a bundled model
    agentrl train {file} --model MODEL --data ROWS.jsonl   rows with problem and answer
"""

from agentrl_envs.arithmetic import arithmetic_rows
from agentrl_envs.math_with_python import MathWithPython


class {name}(MathWithPython):
    """Solve a problem; Python may be run."""

    # From MathWithPython: the tool `python`, one interpreter per episode. A tool of your own is a method,
    # `@tool def search(self, query: str) -> str`, with `from agentrl import tool` (docs/environments.md).

    system_prompt = ""  # the bundled model has no words to spare; None lets tools and format be explained
    max_turns = 4
    required_fields = ("problem", "answer")
    example_rows = ({{"problem": "17*23", "answer": "391"}},)  # what `agentrl check` tries

    def prompt(self, row):
        return row["problem"]  # for other models: + "\\nPut the final answer in \\\\boxed{{}}."

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])

    @classmethod
    def generate_rows(cls, count, split="train", seed=0):
        return arithmetic_rows(count, split=split, seed=seed)  # where no --data is given
'''


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    kinds = "\n".join(f"  {kind:<7} {text}" for kind, text in KINDS.items())
    parser = add_command(
        subparsers,
        "init",
        "write a small project, or an environment file, to start from",
        description="Write a folder NAME with an environment, rows, settings and a test; or, where the name\n"
        f"ends in .py, an environment file alone.\n\nkinds of projects:\n{kinds}",
    )
    parser.add_argument("name", type=Path, nargs="?", default=Path("my_env.py"), help="default: my_env.py")
    parser.add_argument("--kind", choices=KINDS, help="of the project (default: tools)")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Write the file, or the project."""
    from agentrl.errors import ConfigError

    path: Path = options.name
    if path.exists():
        raise ConfigError(f"{path} exists; name another {'file' if path.suffix == '.py' else 'folder'}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}; make it first")
    if path.suffix == ".py":
        if options.kind:
            raise ConfigError(
                f"--kind is of a project, and {path} names a file: `agentrl init {path.stem} --kind "
                f"{options.kind}` writes a folder with an environment, rows, settings and a test"
            )
        path.write_text(TEMPLATE.format(file=path, name=class_name(path)), encoding="utf-8")
        print(f"wrote {path}; try it: agentrl check {path}")
        return 0
    write_project(path, options.kind or "tools")
    files = ", ".join(sorted(file.name for file in path.iterdir()))
    print(
        f"wrote {path}: {files}; try it:\n"
        f"  cd {path}\n"
        "  agentrl check environment.py    # tries to break it\n"
        "  python -m pytest                # tests it\n"
        "  agentrl train settings.toml     # a few minutes on two cores"
    )
    return 0


def write_project(path: Path, kind: str) -> None:
    """Write a project of a kind into a folder that does not exist."""
    from agentrl.storage.durable import whole_folder

    with whole_folder(path) as folder:
        for file in (PROJECTS / kind).glob("*.py"):
            shutil.copyfile(file, folder / file.name)
        shutil.copyfile(PROJECTS / "settings.toml", folder / "settings.toml")
        rows = {"rows": project_rows(kind, "train", ROWS), "held_out": project_rows(kind, "test", HELD_OUT)}
        for name, several in rows.items():
            lines = [json.dumps(row) + "\n" for row in several]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def project_rows(kind: str, split: Literal["train", "test"], count: int) -> Sequence[Mapping[str, Any]]:
    """Rows that a project begins with."""
    from agentrl_envs.arithmetic import arithmetic_rows

    rows = game_rows(split) if kind == "game" else arithmetic_rows(count, split=split)
    return rows[:count]


def game_rows(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """Rows of the game, shuffled: a number and a range around it. A number belongs to one split."""
    numbers = list(range(100, 1000))
    random.Random("game").shuffle(numbers)
    kept = numbers[: len(numbers) // 4] if split == "test" else numbers[len(numbers) // 4 :]
    rng = random.Random(split)
    rows = []
    for secret in kept:
        low = rng.randint(max(100, secret - GAME_RANGE), min(999 - GAME_RANGE, secret))
        high = low + GAME_RANGE
        rows.append({"id": f"{low}-{high} hides {secret}", "low": low, "high": high, "secret": secret})
    return rows


def class_name(path: Path) -> str:
    """`web_search.py` holds `WebSearch`."""
    name = "".join(part[:1].upper() + part[1:] for part in path.stem.replace("-", "_").split("_"))
    return name if name.isidentifier() else "MyEnv"
