"""Hints: a prompt nobody solves is played with the beginning of its solution (GHPO, code read; Scaf-GRPO of
arXiv 2510.19807, code read, writes its hints by hand).

There a group that failed wholly is tried again with 25, 50, then 75 % of the solution. Without groups each
share is a prompt of its own, with its own value: `priority` draws that level at which a task is solved half
the time, and moves on to less help as the value rises. Rows need a `solution`.

python examples/methods/hints.py rows.jsonl hinted.jsonl

agentrl train run.toml --env.name examples/methods/hints.py:Hinted --data.train hinted.jsonl
"""

import json
import sys

from agentrl_envs.math_with_python import MathWithPython

SHARES = (0.0, 0.25, 0.5, 0.75)
"""Of the solution, as in GHPO."""


class Hinted(MathWithPython):
    """Mathematics with Python, and the beginning of the solution where the row says so."""

    required_fields = ("problem", "answer", "hint")
    example_rows = ({"problem": "What is 2^{10}?", "answer": "1024", "hint": "Four powers of"},)

    def prompt(self, row):
        """The problem, then its hint."""
        asked = super().prompt(row)
        return f"{asked}\nThe solution begins: {row['hint']}" if row["hint"] else asked


def hinted(row):
    """Rows of one task, with more and more of its solution; no hint may hold the answer."""
    words, answer = row["solution"].split(" "), str(row["answer"])
    for share in SHARES:
        hint = " ".join(words[: int(share * len(words))])
        if answer not in hint:
            yield {**row, "id": f"{row['id']}+{share:.0%}", "hint": hint}


if __name__ == "__main__":
    with open(sys.argv[1]) as rows, open(sys.argv[2], "w") as out:
        for row in map(json.loads, rows):
            out.writelines(json.dumps(one) + "\n" for one in hinted(row))
