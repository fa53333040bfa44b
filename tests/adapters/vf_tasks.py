"""Environments as one writes them for verifiers 0.2: single-turn, with tools, of several turns, and faulty ones."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset

SUMS = [{"question": f"{n} + {n}?", "answer": str(2 * n), "info": {"n": n}} for n in range(1, 6)]


def right(completion: list[Any], answer: str) -> float:
    return float(answer in str(completion[-1]["content"]))


async def short(completion: list[Any], **kwargs: Any) -> float:
    return 1.0 if len(str(completion[-1]["content"])) < 20 else 0.0


def careless(completion: list[Any], answer: str) -> float:
    return float(int(str(completion[-1]["content"])) == int(answer))


def judged_elsewhere(completion: list[Any]) -> float:
    raise ConnectionError("the judge does not answer")


def grouped(completions: list[Any]) -> list[float]:
    return [0.0 for _ in completions]


def add(first: int, second: int) -> int:
    """Add two numbers.

    Args:
        first: A number.
        second: Another.
    """
    if first < 0:
        raise ValueError("no negative numbers")
    return first + second


class Guessing(vf.MultiTurnEnv):
    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        if "lost" in str(messages[-1]["content"]):
            raise vf.InfraError("the game's machine is gone")
        return [{"role": "user", "content": "higher" if "4" not in messages[-1]["content"] else "yes"}]

    @vf.stop
    async def found(self, state: Any) -> bool:
        return bool(state["trajectory"]) and "4" in str(state["trajectory"][-1]["completion"][-1]["content"])


def load_environment(kind: str = "single", held_out: bool = True, **more: Any) -> vf.Environment:
    data: dict[str, Any] = {"dataset": Dataset.from_list(SUMS), "system_prompt": "Be brief."}
    if held_out:
        data["eval_dataset"] = Dataset.from_list([{"question": "9 + 9?", "answer": "18"}])
    if kind == "tools":
        return vf.ToolEnv(tools=[add], rubric=vf.Rubric(funcs=[right]), max_turns=4, **data)
    if kind == "guessing":
        return Guessing(rubric=vf.Rubric(funcs=[right]), max_turns=4, **data, **more)
    funcs = {"careless": [careless], "judged": [judged_elsewhere], "grouped": [grouped]}.get(
        kind, [right, short]
    )
    return vf.SingleTurnEnv(rubric=vf.Rubric(funcs=funcs, weights=[0.5] * len(funcs)), **data)
