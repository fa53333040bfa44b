"""Word problems for a small model, which writes the calculation; it is worked out exactly, by fractions.

python word_problems.py traces.jsonl 80 writes traces for a warm start.
"""

import json
import random
import sys
import zlib

from agentrl import Env
from agentrl_envs.countdown import reaches

STORIES = (  # numbers in the order of their telling, and the calculation
    ("{who} has {a} boxes of {b} {what} and {c} more {what}. How many {what}?", "{a}*{b}+{c}"),
    ("{who} buys {a} bags of {b} {what} and loses {c} {what}. How many are left?", "{a}*{b}-{c}"),
    ("{who} has {a} {what}, finds {b} and gives away {c}. How many are left?", "{a}+{b}-{c}"),
    ("{who} had {a} {what}, ate {b} and sold {c}. How many are left?", "{a}-{b}-{c}"),
    ("{a} friends each bring {who} {b} red and {c} blue {what}. How many {what}?", "{a}*({b}+{c})"),
    ("{who} has {a} bags. Each held {b} {what}, and lost {c}. How many {what}?", "{a}*({b}-{c})"),
    ("{who} has {a} {what} and gets {b} packs of {c}. How many {what}?", "{a}+{b}*{c}"),
    ("{who} has {a} {what} and fills {b} jars with {c} each. How many are left over?", "{a}-{b}*{c}"),
)
NAMES = ("Ann", "Ben", "Carl", "Emma", "Grace", "Jack", "Kate", "Leo", "Mary", "Paul", "Sam", "Tom")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")


def conversation(row):
    """The story alone: the warm start has shown what is wanted. An empty message spares the default one."""
    return [{"role": "system", "content": ""}, {"role": "user", "content": row["problem"]}]


class WordProblems(Env):
    """Write a calculation that uses every number of the story once, and reaches its result."""

    max_turns = 1
    required_fields = ("problem", "nums", "target", "calculation")
    example_rows = (
        {"problem": "2*3?", "nums": [2, 3], "target": 6, "calculation": "2*3"},
        {"problem": "9-4?", "nums": [9, 4], "target": 5, "calculation": "9-4"},
    )

    @classmethod
    def generate_rows(cls, count, *, split, seed=0):
        """Rows of which those for training and those held out never share a problem."""
        rng = random.Random(f"word problems {split} {seed}")
        rows = {}
        while len(rows) < count:
            story, calculation = rng.choice(STORIES)
            numbers = {"a": rng.randint(11, 99), "b": rng.randint(11, 49), "c": rng.randint(2, 9)}
            target = eval(calculation.format(**numbers))
            problem = story.format(who=rng.choice(NAMES), what=rng.choice(THINGS), **numbers)
            if target > 0 and (zlib.crc32(problem.encode()) % 4 == 0) == (split == "test"):
                rows[problem] = {
                    "problem": problem,
                    "nums": list(numbers.values()),
                    "target": target,
                    "calculation": calculation.format(**numbers),
                }
        return list(rows.values())

    def prompt(self, row):
        """As the traces of the warm start have it."""
        return conversation(row)

    def reward(self, row, answer):
        """1 for a calculation that any teacher would accept: factors and terms in any order."""
        return reaches(answer or "", row["nums"], row["target"])


if __name__ == "__main__":
    path, count = sys.argv[1:]
    with open(path, "w") as file:
        for row in WordProblems.generate_rows(int(count), split="train", seed=1):
            answer = {"role": "assistant", "content": row["calculation"]}
            file.write(json.dumps({"messages": [*conversation(row), answer]}) + "\n")
