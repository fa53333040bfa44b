r"""Make tool-use traces from the calculator annotations of GSM8K.

A GSM8K solution marks each of its calculations: `48/2 = <<48/2=24>>24 clips`. Every marked calculation
becomes a line of one Python program, with the sentence around it as a comment; a number that an earlier
line computed becomes its variable, so that nothing has to be worked out in the head. The program runs
in the sandbox, and the grader checks what it prints; a trace is kept only if that is the gold answer.
Needs the original files, which hold the solutions (https://github.com/openai/grade-school-math, MIT)::

    python scripts/make_gsm8k_traces.py grade_school_math/data/train.jsonl --out gsm8k_traces.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentrl.training.traces import make_trace
from agentrl_envs import MathWithPython
from agentrl_envs.graders import Verdict, default_grader
from agentrl_sandbox import Limits, Sandbox, open_sandbox

ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_ALLOWED = re.compile(r"[0-9+\-*/(). ]+")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def gold_answer(solution: str) -> str:
    """The number after `####`, without thousands separators."""
    return solution.rpartition("####")[2].strip().replace(",", "")


def make_program(solution: str) -> str | None:
    """The annotated calculations of a solution as a Python program that prints the last one.

    None when there is no annotation, or one that is not plain arithmetic.
    """
    lines: list[str] = []
    known: dict[str, str] = {}
    for sentence in solution.partition("####")[0].splitlines():
        found = [(left.strip(), right.strip()) for left, right in ANNOTATION.findall(sentence)]
        if not found:
            continue
        lines.append(f"# {_with_names(_comment(sentence), known)}")
        for expression, result in found:
            expression = _plain(expression)
            if expression is None:
                return None
            name = f"x{sum(line.startswith('x') for line in lines) + 1}"
            lines.append(f"{name} = {_with_names(expression, known)}")
            known[_canonical(result)] = name
    if not lines:
        return None
    last = lines[-1].split(" ", 1)[0]
    return "\n".join([*lines, f"print({last})"])


def _plain(expression: str) -> str | None:
    """An expression that Python reads: no thousands separators, percent signs or units."""
    text = expression.replace(",", "").replace("$", "").replace("x", "*")
    text = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", text)
    text = re.sub(r"(?<![\d.])\.(\d)", r"0.\1", text)
    text = re.sub(r"(?<![\d.])0+(\d)", r"\1", text)  # Python reads no leading zeros
    return text if _ALLOWED.fullmatch(text) else None


def _canonical(number: str) -> str:
    try:
        return f"{float(number.replace(',', '').replace('$', '')):g}"
    except ValueError:
        return number


def _with_names(expression: str, known: dict[str, str]) -> str:
    """The expression with numbers that an earlier line computed replaced by its variable."""
    return _NUMBER.sub(lambda match: known.get(_canonical(match[0]), match[0]), expression)


def _comment(sentence: str) -> str:
    """The sentence without its results: `She has 48/2 = <<48/2=24>>24 clips` -> `She has 48/2 clips`."""
    text = re.sub(r"\s*=\s*\$?<<[^<>]*>>\$?[\d.,]*\d%?", "", sentence)
    text = re.sub(r"\$?<<([^<>=]*)=[^<>]*>>\$?[\d.,]*\d%?", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def make_messages(problem: str, program: str, output: str, answer: str) -> list[dict[str, Any]]:
    """The conversation of one trace, with the prompt that the environment gives."""
    call = {"name": "python", "arguments": json.dumps({"code": program})}
    row = {"problem": problem, "answer": answer}
    return [
        {"role": "user", "content": MathWithPython.prompt(MathWithPython(), row)},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": output},
        {"role": "assistant", "content": f"The answer is \\boxed{{{answer}}}."},
    ]


async def check(row: dict[str, Any], sandbox: Sandbox) -> tuple[str, dict[str, Any] | None]:
    """What became of a row ("kept", or why not), and its trace."""
    program = make_program(row["answer"])
    if program is None:
        return "no plain calculation", None
    gold = gold_answer(row["answer"])
    session = await sandbox.open(stateless=True)
    try:
        result = await session.run(program)
    finally:
        await session.close()
    if not result.ok:
        return f"program: {result.status}", None
    if await default_grader().grade(f"\\boxed{{{result.text.strip()}}}", gold) is not Verdict.RIGHT:
        return "another result", None
    tools = [spec.as_openai() for spec in MathWithPython.tool_specs()]
    trace = {"messages": make_messages(row["question"], program, result.text, gold), "tools": tools}
    make_trace(trace)
    return "kept", trace


def read_rows(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Rows `{"question", "answer"}` of the original file."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if limit and number >= limit:
                return
            yield json.loads(line)


async def make_all(rows: Iterable[dict[str, Any]], out: Path, at_once: int) -> Counter[str]:
    """Check rows, `at_once` of them together, and write the traces in order."""
    counts: Counter[str] = Counter()
    gate = asyncio.Semaphore(at_once)

    async def one(row: dict[str, Any]) -> dict[str, Any] | None:
        async with gate:
            outcome, trace = await check(row, sandbox)
        counts[outcome] += 1
        return trace

    async with open_sandbox("local", limits=Limits(time_s=5.0, memory_mb=256)) as sandbox:
        traces = await asyncio.gather(*(one(row) for row in rows))
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(trace) + "\n" for trace in traces if trace is not None)
    return counts


def main() -> None:
    """Make the traces and say what became of the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="train.jsonl with `question` and annotated `answer`")
    parser.add_argument("--out", type=Path, default=Path("gsm8k_traces.jsonl"))
    parser.add_argument("--limit", type=int, default=0, help="first rows only")
    parser.add_argument("--at-once", type=int, default=8, help="programs in the sandbox at a time")
    options = parser.parse_args()
    counts = asyncio.run(make_all(read_rows(options.source, options.limit), options.out, options.at_once))
    for outcome, count in counts.most_common():
        print(f"{count:6} {outcome}")


if __name__ == "__main__":
    main()
