"""The paper's figure 5 through the real dispatcher, then the fair comparison.

`python -m benchmarks.async_simulation` prints two tables and a JSON line. Part 1 repeats the paper's set-up:
both sides over-generate twofold and keep what ends first (3 of 6 groups of 8; 24 of 48 episodes).
Part 2 refills slots and discards nothing, so what differs is the schedule alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json

import numpy as np

from agentrl.episode import Episode, Segment, StopReason
from agentrl.rollout.token_completer import Dispatch
from agentrl.training.dispatcher import Dispatcher
from benchmarks.simulation import ARMS, Draw, SimulatedRun, lognormal, mixture
from benchmarks.virtual_clock import run


class _Once:
    """48 episodes at once; remembers when each ended."""

    def __init__(self, latencies: np.ndarray) -> None:
        self.latencies = latencies
        self.ended = np.zeros(len(latencies))
        self.left = len(latencies)
        self.done = asyncio.Event()
        self._next = 0

    def next(self) -> Dispatch | None:
        if self._next == len(self.latencies):
            return None
        self._next += 1
        return Dispatch(f"t{self._next}", self._next - 1, "p", 0)

    async def play(self, dispatch: Dispatch) -> Episode:
        await asyncio.sleep(self.latencies[dispatch.dispatch_index])
        return Episode(
            episode_id=dispatch.episode_id,
            dispatch_index=dispatch.dispatch_index,
            prompt_id="p",
            segments=(Segment([1], b"\x01", [-1.0], [0]),),
            turns=(),
            reward=1.0,
            stop_reason=StopReason.ANSWERED,
            start_version=0,
            temperature=1.0,
        )

    def finished(self, episode: Episode) -> None:
        self.ended[episode.dispatch_index] = asyncio.get_running_loop().time()
        self.left -= 1
        if not self.left:
            self.done.set()

    def failed(self, episode: Episode) -> None:
        raise AssertionError(episode)

    def cancelled(self, dispatch: Dispatch) -> None:
        raise AssertionError(dispatch)


async def _figure_5(latency: Draw, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds until 3 of 6 groups of 8 are complete, and until 24 of 48 single episodes are."""
    stream = _Once(np.array([latency(rng) for _ in range(48)]))
    dispatcher = Dispatcher(stream, stream.play, 48)
    running = asyncio.ensure_future(dispatcher.run())
    await stream.done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    groups = np.sort(stream.ended.reshape(6, 8).max(axis=1))
    return float(groups[2]), float(np.sort(stream.ended)[23])


def figure_5(slow: float, draws: int, seed: int) -> dict[str, float]:
    """Distribution of the ratio over many draws."""
    rng = np.random.default_rng(seed)
    pairs = np.array([run(_figure_5(mixture(slow), rng)) for _ in range(draws)])
    ratio = pairs[:, 0] / pairs[:, 1]
    return {
        "slow_share": slow,
        "group_s": float(pairs[:, 0].mean()),
        "single_s": float(pairs[:, 1].mean()),
        "ratio_mean": float(ratio.mean()),
        **{f"ratio_p{q}": float(np.percentile(ratio, q)) for q in (5, 50, 95)},
        "share_at_least_4.35": float((ratio >= 4.35).mean()),
    }


def fair(latency: Draw, *, steps: int, seeds: int, learn_s: float) -> list[dict[str, object]]:
    """Every arm on the same latencies, slots refilled, nothing discarded but by dynamic sampling."""
    rows: list[dict[str, object]] = []
    for arm in ARMS:
        found = [
            run(
                SimulatedRun(arm, latency, batch=64, slots=64, steps=steps, learn_s=learn_s, seed=seed).run()
            ).row(arm.staleness)
            for seed in range(seeds)
        ]
        rows.append({"arm": arm.name, **{k: float(np.median([f[k] for f in found])) for k in found[0]}})
    return rows


def main() -> None:
    """Print tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    paper = [figure_5(slow, options.draws, seed=0) for slow in (0.05, 0.1, 0.15, 0.2, 0.25)]
    print("Figure 5 of the paper: 3 of 6 groups of 8, against 24 of 48 (seconds; ratio)")
    for row in paper:
        print("  " + "  ".join(f"{name}={value:.2f}" for name, value in row.items()))
    tails = {f"mixture p={slow}": mixture(slow) for slow in (0.05, 0.15, 0.25)}
    tails |= {f"lognormal sigma={sigma}": lognormal(112.0, sigma) for sigma in (0.5, 1.1)}
    table = {
        name: fair(latency, steps=options.steps, seeds=options.seeds, learn_s=30.0)
        for name, latency in tails.items()
    }
    for name, rows in table.items():
        print(f"{name}: batch 64, 64 slots, learner step 30 s, medians of {options.seeds} seeds")
        for row in rows:
            numbers = "  ".join(f"{k}={v:.3g}" for k, v in row.items() if k != "arm")
            print(f"  {row['arm']:28s} {numbers}")
    print(json.dumps({"benchmark": "async_simulation", "figure_5": paper, "fair": table}))


if __name__ == "__main__":
    main()
