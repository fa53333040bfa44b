"""Environments as one hands them to `GRPOTrainer(environment_factory=...)`, and tools and reward functions beside them."""

from __future__ import annotations

import sqlite3
from typing import Any


class Counter:
    """Counts up; the reward is for a round number."""

    def __init__(self) -> None:
        self.value = -1
        self.closed = False

    def reset(self, start: int = 0, **kwargs: Any) -> str | None:
        self.value = int(start)
        return f" The counter is at {self.value}."

    def add(self, amount: int, times: int = 1) -> int:
        """
        Add to the counter.

        Args:
            amount: How much to add.
            times: How often.

        Returns:
            The counter.
        """
        if amount < 0:
            raise ValueError("it only counts up")
        self.value += amount * times
        return self.value

    def get_reward(self) -> float:
        return float(self.value % 10 == 0)


class Ledger:
    """Keeps an sqlite connection, which only the thread that made it may use; all of it async or not."""

    def __init__(self) -> None:
        self.database = sqlite3.connect(":memory:")
        self.database.execute("create table entries (amount integer)")

    async def reset(self, **kwargs: Any) -> None:
        return None

    async def step(self, amount: int) -> str:
        """
        Book an amount.

        Args:
            amount: In cents.
        """
        return f"booked {amount}"

    def close(self) -> str:
        """Close the books."""
        self.database.execute("insert into entries values (1)")
        return "closed"

    async def get_reward(self) -> float:
        return 0.25


def multiply(first: int, second: int) -> int:
    """
    Multiply two numbers.

    Args:
        first: A number.
        second: Another.
    """
    return first * second


def accuracy(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    said = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(right in text) for right, text in zip(answer, said, strict=True)]


def used_a_tool(prompts: list[Any], completions: list[Any]) -> list[float | None]:
    return [
        None if isinstance(one, str) else float(any(m["role"] == "tool" for m in one)) for one in completions
    ]


async def nothing(completions: list[Any]) -> list[None]:
    return [None for _ in completions]


def a_number(completions: list[Any]) -> float:
    return 1.0


class NoReset:
    def add(self, amount: int) -> int:
        """Add."""
        return amount


class Unpaid:
    def reset(self, **kwargs: Any) -> None:
        return None
