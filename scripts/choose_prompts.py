"""Prompts a weak model can learn from: short ones to try it on, then those it solved at times.

    python scripts/choose_prompts.py short train.jsonl --first 2500 --shortest 800 --out candidates.jsonl
    agentrl eval models/smollm2-sft --data candidates.jsonl --samples 3 ... --out evals/candidates
    python scripts/choose_prompts.py solved candidates.jsonl --eval evals/candidates --out learnable.jsonl \
      --rewards learnable_rewards.jsonl

A prompt that is never solved teaches nothing, and a batch of 32 has no room for it. `--rewards` is what
`tracker.initial_file` reads: the tries were made, so the tracker starts from them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentrl.evaluation.results import Record, read_records
from agentrl.storage.durable import read_lines
from agentrl.tasks.datasets import bare_answer

Row = Mapping[str, Any]


def as_row(number: int, row: Row) -> Row:
    """A row with id, problem and answer, also of GSM8K's own file (question; solution, then `#### answer`)."""
    if "question" not in row:
        return row
    answer = bare_answer(row["answer"], "hash_marks")
    return {"id": f"gsm8k-train-{number}", "problem": row["question"].strip(), "answer": answer}


def short(rows: list[Row], first: int, shortest: int) -> list[Row]:
    """The `shortest` of the `first` rows by the length of the problem, in the file's order."""
    kept = sorted(range(min(first, len(rows))), key=lambda index: len(rows[index]["problem"]))[:shortest]
    return [rows[index] for index in sorted(kept)]


def rewards_of(results: Iterable[Record]) -> dict[str, list[float]]:
    """Rewards per problem, in the order of the draws; an episode that failed has none."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for record in sorted(results, key=lambda record: record.draw):
        if record.failure is None and record.reward is not None:
            rewards[record.problem].append(record.reward)
    return rewards


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as jsonl."""
    path.write_text(
        "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def main() -> None:
    """Choose candidates, or those that were solved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("short", help="candidates: the shortest problems")
    one.add_argument("--first", type=int, default=2500, help="of the first rows only")
    one.add_argument("--shortest", type=int, default=800)
    two = commands.add_parser("solved", help="those solved at least once")
    two.add_argument("--eval", type=Path, required=True, help="folder of `agentrl eval --out`")
    two.add_argument("--rewards", type=Path, required=True, help="for tracker.initial_file")
    for command in (one, two):
        command.add_argument("data", type=Path, help="jsonl with id, problem, answer (or GSM8K's own)")
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = list(read_lines(options.data))
    if options.command == "short":
        rows = [as_row(number, row) for number, row in enumerate(rows)]
        chosen = short(rows, options.first, options.shortest)
        write(options.out, chosen)
        print(
            f"{len(chosen)} of {len(rows)} problems, at most {max(len(r['problem']) for r in chosen)} characters"
        )
        return
    rewards = rewards_of(read_records(options.eval))
    chosen = [row for row in rows if any(rewards.get(row["id"], ()))]
    write(options.out, chosen)
    write(options.rewards, [{"prompt_id": row["id"], "rewards": rewards[row["id"]]} for row in chosen])
    tried = [value for values in rewards.values() for value in values]
    kept = [value for row in chosen for value in rewards[row["id"]]]
    print(
        f"{len(chosen)} of {len(rewards)} problems solved at least once; mean reward {sum(tried) / max(1, len(tried)):.3f}"
    )
    print(f"of those kept {sum(kept) / max(1, len(kept)):.3f}")


if __name__ == "__main__":
    main()
