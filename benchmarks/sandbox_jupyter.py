"""The programs of `tests/sandbox/notebook_programs.txt` here and in a Jupyter kernel: output, echo, last error.

    python -m benchmarks.sandbox_jupyter --jupyter /path/to/bin/python --libraries DIRECTORY

`--jupyter` names a Python that has ipykernel and jupyter_client, `--libraries` a directory with numpy, sympy and
matplotlib. Prints one line for each program and the differences. `--write` puts what the sandbox says now into
the file, which the tests compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from agentrl_sandbox import Limits, open_sandbox

PROGRAMS = Path(__file__).parents[1] / "tests" / "sandbox" / "notebook_programs.txt"
_KERNEL = """
import json, sys
from jupyter_client.manager import start_new_kernel
answers = {}
for name, cells in json.load(sys.stdin).items():
    manager, client = start_new_kernel(kernel_name="python3")
    said = []
    for cell in cells:
        outputs = []
        client.execute_interactive(cell, allow_stdin=False, timeout=60, output_hook=outputs.append)
        row = {"stdout": "", "stderr": "", "echo": None, "error": None}
        for message in outputs:
            kind, content = message["msg_type"], message["content"]
            if kind == "stream": row[content["name"]] += content["text"]
            elif kind == "execute_result": row["echo"] = content["data"]["text/plain"]
            elif kind == "display_data": row["stdout"] += content["data"]["text/plain"] + "\\n"
            elif kind == "error": row["error"] = content["ename"]
        said.append(row)
    answers[name] = said
    client.stop_channels(); manager.shutdown_kernel(now=True)
print(json.dumps(answers))
"""


def read_programs(text: str) -> list[dict[str, Any]]:
    """`name`, `needs` (a library or None), `cells` and `says` (what each cell must say) of every program."""
    programs = []
    for block in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        head, _, rest = block.partition("\n")
        name, _, needs = head.partition(" [")
        body, _, says = rest.partition("\n--- says\n")
        cells, expected = body.split("\n--- cell\n"), says.split("\n--- cell\n")
        programs.append(
            {
                "name": name,
                "needs": needs.rstrip("]") or None,
                "cells": [cell.rstrip("\n") for cell in cells],
                "says": [said.rstrip("\n") for said in expected],
            }
        )
    return programs


def write_programs(programs: list[dict[str, Any]]) -> str:
    """The text that `read_programs` reads."""
    blocks = []
    for program in programs:
        head = program["name"] + (f" [{program['needs']}]" if program["needs"] else "")
        cells, says = ("\n--- cell\n".join(program[key]) for key in ("cells", "says"))
        blocks.append(f"=== {head}\n{cells}\n--- says\n{says}\n")
    return "".join(blocks)


async def run_here(programs: list[dict[str, Any]], libraries: str | None) -> list[list[Any]]:
    """The results of all cells of all programs."""
    async with open_sandbox(
        "local", library_path=libraries, zygotes=1, limits=Limits(time_s=60.0)
    ) as sandbox:
        answers = []
        for program in programs:
            async with await sandbox.open() as session:
                answers.append([await session.run(cell) for cell in program["cells"]])
        return answers


def compare(ours: Any, theirs: dict[str, Any]) -> list[str]:
    """What differs between two answers to one cell, white space apart."""
    last = (ours.error or "").rpartition("Traceback (most recent call last):\n")[2]
    error = re.search(r"^([\w.]+?)(?::|$)", last, re.MULTILINE)
    rows = {
        "stdout": (re.sub(r" saved as \S+", "", ours.stdout), theirs["stdout"]),
        "stderr": (re.sub(r"<cell \d+>|/\S*ipykernel\S*\.py", "CELL", ours.stderr), theirs["stderr"]),
        "echo": (ours.value, theirs["echo"]),
        "error": (error[1].rpartition(".")[2] if error else None, theirs["error"]),
    }
    rows["stderr"] = (rows["stderr"][0], re.sub(r"/\S*ipykernel\S*\.py", "CELL", rows["stderr"][1]))
    return [
        f"{what}: here {here!r}, Jupyter {there!r}"
        for what, (here, there) in rows.items()
        if re.sub(r"\s+", "", here or "") != re.sub(r"\s+", "", there or "")
    ]


def main() -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jupyter", required=True)
    parser.add_argument("--libraries", default=None)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    programs = read_programs(PROGRAMS.read_text())
    here = asyncio.run(run_here(programs, options.libraries))
    asked = json.dumps({program["name"]: program["cells"] for program in programs})
    done = subprocess.run(
        [options.jupyter, "-c", _KERNEL], input=asked, capture_output=True, text=True, check=True
    )
    there, same = json.loads(done.stdout), 0
    for program, results in zip(programs, here, strict=True):
        pairs = zip(results, there[program["name"]], strict=True)
        different = [line for ours, theirs in pairs for line in compare(ours, theirs)]
        same += not different
        sys.stdout.write(f"{'same  ' if not different else 'DIFFER'}  {program['name']}\n")
        sys.stdout.writelines(f"          {line}\n" for line in different)
        program["says"] = [result.text for result in results]
    sys.stdout.write(f"{same} of {len(programs)} the same\n")
    if options.write:
        PROGRAMS.write_text(write_programs(programs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
