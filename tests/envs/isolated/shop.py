"""An environment that does all that one can, and breaks its process on demand."""

import os
import sys
import time
from typing import Any

from agentrl_envs import Env, Finish, SandboxFailure, ToolError, tool


class Shop(Env):
    """Sells things."""

    discount: int = 0
    hook_timeout_s = 20.0
    example_rows = ({"problem": "What is 6 * 7?", "answer": "42"},)

    @classmethod
    def generate_rows(cls, count: int, *, split: str = "train", seed: int = 0) -> list[dict[str, Any]]:
        return [{"problem": f"{split} {seed + n}", "answer": str(n)} for n in range(count)]

    def setup(self) -> None:
        self.bought: list[str] = []

    def prompt(self, row: dict[str, Any]) -> str:
        row["seen"] = True
        return f"{row['problem']} ({self.discount} percent, {self.rng.random():.6f})"

    @tool
    def buy(self, name: str) -> list[str]:
        """Buy something."""
        self.bought.append(name)
        self.reward_turn(0.25)
        return self.bought

    @tool
    def refuse(self) -> str:
        """Say no."""
        raise ToolError("sold out")

    @tool
    def finish(self) -> str:
        """End the episode."""
        raise Finish(answer="\\boxed{42}")

    @tool
    def break_down(self) -> str:
        """Lose the sandbox."""
        raise SandboxFailure("no room")

    @tool
    async def ask(self, question: str) -> str:
        """Ask a helper."""
        return await self.agent(question, tools=["buy"], name="helper")

    @tool
    async def forget(self) -> str:
        """Drop what was said."""
        return f"{self.context.drop(keep=0)} {self.context.tokens > 0}"

    @tool
    async def compute(self, code: str) -> str:
        """Run a program in the sandbox."""
        return (await (await self.sandbox.open()).run(code)).text

    @tool
    def die(self) -> str:
        """End the process."""
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)

    @tool(timeout_s=1.0)
    async def block(self) -> str:
        """Block the process."""
        time.sleep(600)  # noqa: ASYNC251 - on purpose
        return ""

    @tool
    def grow(self, megabytes: int) -> str:
        """Take memory that is never given back."""
        KEPT.append(bytearray(os.urandom(1 << 20)) * megabytes)
        return "taken"

    @tool
    def process(self) -> int:
        """The process that this runs in."""
        return os.getpid()

    def reward(self, row: dict[str, Any], answer: str | None) -> Any:
        return {"right": 0.5 * self.grade(answer, row["answer"]), "polite": 0.5 * row["seen"]}


KEPT: list[bytearray] = []
