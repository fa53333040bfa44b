"""Environments as one writes them for verifiers 0.2: single-turn, with tools, of several turns, and faulty ones."""

from __future__ import annotations

import sqlite3
import sys
import threading
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


def leaving(completion: list[Any]) -> float:
    sys.exit(1)


BASE = sqlite3.connect(":memory:")
MEETING = threading.Barrier(3, timeout=10)


def meeting(completion: list[Any]) -> float:
    MEETING.wait()
    return 1.0


async def blocking(completion: list[Any]) -> float:
    MEETING.wait()
    return 1.0


def meet() -> str:
    """Meet the others."""
    MEETING.wait()
    return "met"


def look_up() -> str:
    """Look it up."""
    return str(BASE.execute("select 4").fetchone())


class Forgetful(vf.ToolEnv):
    """Shows only the newest result of a tool."""

    async def get_prompt_messages(self, state: Any) -> Any:
        messages = await super().get_prompt_messages(state)
        results = [n for n, one in enumerate(messages) if one.role == "tool"]
        return [
            one.model_copy(update={"content": "(left out)"}) if n in results[:-1] else one
            for n, one in enumerate(messages)
        ]


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
    if kind.startswith("grouped_"):
        return vf.EnvGroup([load_environment(kind.removeprefix("grouped_"), held_out, **more)])
    if kind == "forgetful":
        return Forgetful(tools=[add], rubric=vf.Rubric(funcs=[right]), max_turns=4, **data)
    if kind in ("meeting_tools", "looking_up"):
        tools = [meet] if kind == "meeting_tools" else [look_up]
        return vf.ToolEnv(tools=tools, rubric=vf.Rubric(funcs=[right], weights=[0.5]), **data)
    if kind == "tools":
        return vf.ToolEnv(tools=[add], rubric=vf.Rubric(funcs=[right]), max_turns=4, **data)
    if kind == "guessing":
        return Guessing(rubric=vf.Rubric(funcs=[right]), max_turns=4, **data, **more)
    funcs = {
        "careless": [careless],
        "judged": [judged_elsewhere],
        "grouped": [grouped],
        "leaving": [leaving],
        "meeting": [meeting],
        "blocking": [blocking],
    }.get(kind, [right, short])
    return vf.SingleTurnEnv(rubric=vf.Rubric(funcs=funcs, weights=[0.5] * len(funcs)), **data)
