"""Sums that are too long for the head of a small model: `agentrl train examples/sums.py`."""

import random

from agentrl import Env, tool


class Sums(Env):
    """Work out an expression such as 123*45+678; Python may be run."""

    max_turns = 4
    system_prompt = ""
    required_fields = ("problem", "answer")
    example_rows = ({"problem": "123*45+678", "answer": "6213"}, {"problem": "871*32-456", "answer": "27416"})

    @classmethod
    def generate_rows(cls, count, *, split, seed=0):
        rng = random.Random(f"{split} {seed}")
        rows = {}
        while len(rows) < count:
            a, b, c = rng.randint(100, 999), rng.randint(11, 99), rng.randint(100, 999)
            if (a % 4 == 0) == (split == "test"):  # training and held-out problems never meet
                rows[f"{a}*{b}+{c}"] = {"problem": f"{a}*{b}+{c}", "answer": str(a * b + c)}
        return list(rows.values())

    async def setup(self):
        self.session = await self.sandbox.open()

    def prompt(self, row):
        return row["problem"]

    @tool
    async def python(self, code: str) -> str:
        "Run Python; state is kept between calls."
        return (await self.session.run(code)).text

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
