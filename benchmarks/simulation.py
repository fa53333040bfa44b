"""A training run without tokens: the real dispatcher and buffer, latencies from a distribution.

Each episode sleeps for its latency, each learner step for its own; on a virtual clock that costs
nothing. What is measured is the schedule: throughput, batch latency, staleness, idle time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agentrl.episode import Episode, Segment, StopReason
from agentrl.rollout.token_completer import Dispatch
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.dispatcher import Dispatcher
from agentrl.training.groups import Groups

Draw = Callable[[np.random.Generator], float]


def mixture(slow: float) -> Draw:
    """Latency in seconds: (1 - p) N(101.5, 20) + p N(480, 50), floored at 20 and 150.

    Calibrated on the bars of figures 4 and 5 of the SPO paper, which gives no distribution.
    """

    def draw(rng: np.random.Generator) -> float:
        if rng.random() < slow:
            return max(150.0, float(rng.normal(480.0, 50.0)))
        return max(20.0, float(rng.normal(101.5, 20.0)))

    return draw


def lognormal(median: float, sigma: float) -> Draw:
    """Latency in seconds with a heavy tail that grows with sigma."""
    return lambda rng: float(median * np.exp(sigma * rng.standard_normal()))


@dataclass(frozen=True, slots=True)
class Arm:
    """How one arm schedules."""

    name: str
    staleness: int = 1
    stale_policy: str = "correct"
    group: int = 1
    dynamic_sampling: bool = False


ARMS = (
    Arm("streaming SPO", staleness=1),
    Arm("synchronous SPO", staleness=0),
    Arm("GRPO with barrier", staleness=0, group=8),
    Arm("asynchronous GRPO", staleness=1, group=8),
    Arm("GRPO with dynamic sampling", staleness=1, group=8, dynamic_sampling=True),
)


@dataclass(slots=True)
class Outcome:
    """What a simulated run came to; times in virtual seconds."""

    seconds: float = 0.0
    busy_s: float = 0.0
    idle_s: float = 0.0
    first_batch_s: float = 0.0
    staleness: list[int] = field(default_factory=list)
    batch_latency: list[float] = field(default_factory=list)
    """From the first dispatch of a batch's episodes to the start of its step."""
    learned: int = 0
    discarded: int = 0

    def row(self, limit: int) -> dict[str, float]:
        """As numbers."""
        ages = np.array(self.staleness)
        return {
            "episodes_per_s": self.learned / self.seconds,
            "batch_latency_s": float(np.median(self.batch_latency)),
            "staleness_mean": float(ages.mean()),
            "staleness_max": int(ages.max()),
            "excess_share": float((ages > limit).mean()),
            "learner_idle_share": self.idle_s / self.seconds,
            "discarded_share": self.discarded / max(1, self.learned + self.discarded),
        }


class SimulatedRun:
    """One run of `steps` learner steps; also the dispatcher's stream.

    Args:
        latency: of an episode.
        learn_s: of a learner step.
        success: chance of a reward of 1, drawn per prompt (dynamic sampling discards equal groups).
    """

    def __init__(
        self,
        arm: Arm,
        latency: Draw,
        *,
        batch: int,
        slots: int,
        steps: int,
        learn_s: float,
        seed: int,
        success: Callable[[np.random.Generator], float] = lambda rng: float(rng.beta(0.5, 0.5)),
    ) -> None:
        self._arm, self._latency, self._steps, self._learn_s = arm, latency, steps, learn_s
        self._rng, self._seed = np.random.default_rng(seed), seed
        self._success = success
        self.buffer = EpisodeBuffer(
            batch=batch,
            staleness=arm.staleness,
            stale_policy=arm.stale_policy,
            groups=Groups(arm.group) if arm.group > 1 else None,
            keep=(lambda unit: len({e.reward for e in unit}) > 1) if arm.dynamic_sampling else None,
        )
        self.dispatcher = Dispatcher(self, self._play, slots)
        self.outcome = Outcome()
        self._started: dict[int, float] = {}
        self._index = 0
        self._chance = 0.5

    def next(self) -> Dispatch | None:
        """The next episode while the buffer admits one; nothing is dispatched that no step will use."""
        done = self.buffer.version * self.buffer.batch + self.buffer.under_way
        if self.buffer.room() <= 0 or done >= self._steps * self.buffer.batch:
            return None
        if self._index % self._arm.group == 0:
            self._chance = self._success(self._rng)
        index, self._index = self._index, self._index + 1
        self.buffer.started(f"t{index}", self.buffer.version)
        self._started[index] = asyncio.get_running_loop().time()
        group = index // self._arm.group if self._arm.group > 1 else None
        return Dispatch(f"t{index}", index, "p", self.buffer.version, group=group)

    async def _play(self, dispatch: Dispatch) -> Episode:
        # By index, so that all arms meet the same latencies whatever order they dispatch in.
        rng = np.random.default_rng((self._seed, dispatch.dispatch_index))
        reward = float(rng.random() < self._chance)
        await asyncio.sleep(self._latency(rng))
        version = dispatch.start_version
        return Episode(
            episode_id=dispatch.episode_id,
            dispatch_index=dispatch.dispatch_index,
            prompt_id="p",
            segments=(Segment([1, 2], b"\x00\x01", [0.0, -1.0], [-1, version]),),
            turns=(),
            reward=reward,
            stop_reason=StopReason.ANSWERED,
            start_version=version,
            temperature=1.0,
            group=dispatch.group,
        )

    def finished(self, episode: Episode) -> None:
        """Into the buffer."""
        rejected = self.buffer.put(episode)
        if rejected is not None:
            self.outcome.discarded += len(rejected)

    def failed(self, episode: Episode) -> None:
        """Nothing fails here."""

    def cancelled(self, dispatch: Dispatch) -> None:
        """At the end."""
        self.buffer.dropped(dispatch.episode_id)

    async def run(self) -> Outcome:
        """Run all steps."""
        clock, outcome = asyncio.get_running_loop().time, self.outcome
        running = asyncio.ensure_future(self.dispatcher.run())
        for version in range(self._steps):
            waiting = clock()
            batch = await self.buffer.take()
            outcome.idle_s += clock() - waiting
            if version == 0:
                outcome.first_batch_s = clock()
            outcome.staleness += [episode.staleness(version) for episode in batch]
            outcome.batch_latency.append(clock() - min(self._started[e.dispatch_index] for e in batch))
            outcome.learned += len(batch)
            await asyncio.sleep(self._learn_s)
            outcome.busy_s += self._learn_s
            self.buffer.advance(version + 1)
            self.dispatcher.wake()
        outcome.seconds = clock()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await self.dispatcher.stop()
        return outcome
