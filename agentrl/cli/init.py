"""`agentrl init`: write a new environment file to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

TEMPLATE = '''\
"""What the agent is asked, which tools it has, and what is paid.

    agentrl check {file}                                   tries to break it; needs no model
    agentrl train {file} --model MODEL --data ROWS.jsonl   rows are {{"problem": ..., "answer": ...}}
"""

from agentrl_envs.math_with_python import MathWithPython


class {name}(MathWithPython):
    """Solve a problem; Python may be run."""

    # From MathWithPython: the tool `python`, one interpreter per episode. A tool of your own is a method,
    # `@tool def search(self, query: str) -> str`, with `from agentrl import tool` (docs/environments.md).

    max_turns = 4
    required_fields = ("problem", "answer")
    example_rows = ({{"problem": "What is 17 * 23?", "answer": "391"}},)  # what `agentrl check` tries

    def prompt(self, row):
        return row["problem"] + "\\nPut the final answer in \\\\boxed{{}}."

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
'''


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("init", help="write a new environment file to start from")
    parser.add_argument("file", type=Path, nargs="?", default=Path("my_env.py"), help="default: my_env.py")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Write the file."""
    from agentrl.errors import ConfigError

    path: Path = options.file
    if path.suffix != ".py":
        raise ConfigError(f"{path} should end in .py: other commands take it for an environment by that")
    if path.exists():
        raise ConfigError(f"{path} exists; name another file")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}; make it first")
    path.write_text(TEMPLATE.format(file=path, name=class_name(path)), encoding="utf-8")
    print(f"wrote {path}; try it: agentrl check {path}")
    return 0


def class_name(path: Path) -> str:
    """`web_search.py` holds `WebSearch`."""
    name = "".join(part[:1].upper() + part[1:] for part in path.stem.replace("-", "_").split("_"))
    return name if name.isidentifier() else "MyEnv"
