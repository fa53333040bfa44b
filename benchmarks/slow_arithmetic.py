"""The demo's environment with latencies that are fixed beforehand: episode number n of a run takes what it takes.

Loaded by `benchmarks.async_real` as `--env.name=benchmarks.slow_arithmetic:SlowArithmetic`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentrl_envs import Reward, ToolCall, ToolResult
from agentrl_envs.arithmetic import Arithmetic
from benchmarks.simulation import mixture

GRADED: list[tuple[float, float]] = []
"""(`time.monotonic()`, reward) of every episode graded by this process, in the order they ended."""


class SlowArithmetic(Arithmetic):
    """Arithmetic whose every episode waits once: at its first tool call, or before it is graded.

    The wait is drawn from the random stream of the episode, which the run's seed and the dispatch index
    decide: arms of one seed meet the same latencies, whatever the policy does. It is awaited and costs no
    processor time. It comes after the first message is sampled, so it makes those tokens stale.
    """

    slow: float = 0.15
    """Share of slow episodes, see `benchmarks.simulation.mixture`."""
    scale: float = 0.01
    """Times the mixture's seconds."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        draw = mixture(self.slow)
        self.latency_s = self.scale * draw(np.random.default_rng(self.rng.getrandbits(64)))
        self._waited = False

    async def _wait(self) -> None:
        if not self._waited:
            self._waited = True
            await asyncio.sleep(self.latency_s)

    async def call_tools(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Wait, then run them."""
        await self._wait()
        return await super().call_tools(calls)

    async def score(self, *arguments: Any, **given: Any) -> Reward:
        """Wait if no tool did, grade, and note the reward."""
        await self._wait()
        reward = await super().score(*arguments, **given)
        GRADED.append((time.monotonic(), reward.value))
        return reward
