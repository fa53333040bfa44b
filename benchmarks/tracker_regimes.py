"""Which baseline wins at how many visits a prompt: SPO, groups, fresh copies, a tracker with a trend.

`python -m benchmarks.tracker_regimes`: a closed loop without tokens. P(success) of a prompt is
sigmoid(b + its 4 of 256 skills - harm); REINFORCE with each arm's advantages moves the skills, and the same
advantages times noise move 20,000 directions that only harm. So an arm wins by the share of its advantages that
is signal. Tracker, sampler and advantages are the real ones. Every arm gets the same number of episodes,
initial rollouts included, and each its best learning rate of a grid on seeds of its own. Arms are paired by
seed. `--open-loop` lets the policy move by itself and compares the error of the baselines only. Prints tables
and a JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.advantage import grpo_advantages, normalise
from agentrl.algorithms.prompt_sampler import PriorityWeights, PromptSampler, UniformWeights
from agentrl.algorithms.trend_tracker import TrendTracker
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.evaluation.statistics.quantiles import student_t_quantile

SKILLS, SKILLS_EACH, HARMFUL = 256, 4, 20_000
SPREAD = 2.2
"""Deviation of the prompts' difficulties, in logits."""
HARM = 2.0
"""Logits lost per unit of the squared length of the harmful part of the policy."""
BATCH, STEPS = 256, 200
REGIMES = (1_000, 4_000, 17_000)
RATES = (0.6, 1.2, 2.4)
TRIED = (1_000, 1_001)
"""Seeds that a rate is chosen on."""
FLOOR = 0.1
COPIES = 8

Array = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """How an arm draws prompts and makes baselines."""

    name: str
    tracker: str = "spo"
    rho: float = 0.0
    """Forgetting; 0 for the paper's strongest, .875."""
    initial: int = 0
    """Rollouts of each prompt before the first step, charged."""
    copies: int = 1
    """Episodes of a prompt that was never seen."""
    group: int = 1
    """Episodes of every prompt, always; more than 1 uses no tracker."""
    deviation: bool = False
    """Divide by the deviation of the group."""


ARMS = (
    Arm("spo"),
    Arm("spo, rho .96", rho=0.96),
    Arm("spo, init 2", initial=2),
    Arm("spo, init 8", initial=8),
    Arm("grpo", group=COPIES, deviation=True),
    Arm("rloo", group=COPIES),
    Arm("copies", copies=COPIES),
    Arm("trend", tracker="trend", rho=0.96),
    Arm("spo_plus", tracker="trend", rho=0.96, copies=COPIES),
)


class Policy:
    """Success of each prompt under skills that are shared, and a part that only harms."""

    def __init__(self, prompts: int, rate: float, rng: np.random.Generator) -> None:
        self._difficulty = rng.normal(0.0, SPREAD, prompts)
        self._of = np.stack([rng.choice(SKILLS, SKILLS_EACH, replace=False) for _ in range(prompts)])
        self._skills, self._harmful = np.zeros(SKILLS), np.zeros(HARMFUL)
        self._rate = rate

    def success(self, prompts: NDArray[np.int64] | slice = slice(None)) -> Array:
        """[N] chance of success now."""
        harm = HARM * float(self._harmful @ self._harmful)
        logits = self._difficulty[prompts] + self._skills[self._of[prompts]].sum(-1) - harm
        return 1.0 / (1.0 + np.exp(-logits))

    def learn(
        self, prompts: NDArray[np.int64], scores: Array, given: Array, rng: np.random.Generator
    ) -> None:
        """One step of REINFORCE."""
        size = self._rate / len(prompts) * given
        slopes = size * (scores - self.success(prompts))
        np.add.at(self._skills, self._of[prompts].ravel(), np.repeat(slopes, SKILLS_EACH))
        where = rng.integers(0, HARMFUL, len(prompts))
        np.add.at(self._harmful, where, size * rng.choice((-1.0, 1.0), len(prompts)))

    def raise_all(self, logits: float, apart: float, rng: np.random.Generator) -> None:
        """Move by itself: all prompts by `logits`, and each by a step of its own of deviation `apart`."""
        self._difficulty += logits + apart * rng.normal(size=len(self._difficulty))


def make_tracker(arm: Arm, prompts: int) -> ValueTracker:
    """The arm's tracker, forgetting by a constant factor."""
    settings = TrackerSettings(drift="constant", rho_constant=arm.rho or 0.875)
    return (
        TrendTracker(TrendTracker.Settings(), prompts, settings)
        if arm.tracker == "trend"
        else ValueTracker(prompts, settings)
    )


class Draws:
    """Units of episodes of one prompt, by the real sampler, cut to batches."""

    def __init__(self, arm: Arm, tracker: ValueTracker, seed: int) -> None:
        kind = UniformWeights() if arm.group > 1 else PriorityWeights(PriorityWeights.Settings())
        self._arm, self._tracker = arm, tracker
        self.sampler = PromptSampler(tracker, SamplerSettings(fresh_copies=arm.copies), kind, seed=seed)

    def batch(self, size: int = BATCH) -> list[int]:
        """Prompts of about `size` episodes: units are whole, so the last one may exceed it."""
        drawn: list[int] = []
        while len(drawn) < size:
            prompt = self.sampler.draw()
            if prompt is None:
                break
            drawn += [prompt] * (self._arm.group if self._arm.group > 1 else self._copies(prompt))
        return drawn

    def _copies(self, prompt: int) -> int:
        return 1 if self._tracker.seen([prompt])[0] else self._arm.copies


def leave_one_out(scores: Array, units: NDArray[np.int64]) -> Array:
    """[B] mean of the other scores of an episode's unit."""
    sums, sizes = np.bincount(units, weights=scores), np.bincount(units)
    return (sums[units] - scores) / np.maximum(sizes[units] - 1, 1)


def play(arm: Arm, prompts: int, rate: float, seed: int) -> dict[str, float]:
    """One run; the last policy's mean success over all prompts, and how good its baselines were."""
    rng = np.random.default_rng(seed)
    policy, tracker = Policy(prompts, rate, rng), make_tracker(arm, prompts)
    draws = Draws(arm, tracker, seed)
    left, errors, curve = BATCH * STEPS, [], [float(policy.success().mean())]
    if arm.initial:
        left -= _initialise(arm, policy, tracker, draws, rng)
    while left >= BATCH:
        drawn = np.array(draws.batch())
        left -= len(drawn)
        success = policy.success(drawn)
        scores = (rng.random(len(drawn)) < success).astype(float)
        baselines, given = credit(arm, tracker, drawn, scores)
        errors.append(float(np.mean((baselines - success) ** 2)))
        policy.learn(drawn, scores, given, rng)
        fold(tracker, draws.sampler, drawn, scores)
        curve.append(float(policy.success().mean()))
    seen = float(tracker.seen(np.arange(prompts)).mean())
    mean = float(np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, len(curve)), curve).mean())
    return {"success": curve[-1], "curve": mean, "error": float(np.mean(errors or [np.nan])), "seen": seen}


def _initialise(
    arm: Arm, policy: Policy, tracker: ValueTracker, draws: Draws, rng: np.random.Generator
) -> int:
    prompts, budget = len(tracker), BATCH * STEPS
    each = min(arm.initial, budget // prompts)
    for prompt, chance in enumerate(policy.success()):
        tracker.initialise(prompt, (rng.random(each) < chance).astype(float).tolist())
    draws.sampler.refresh_all()
    return each * prompts


def credit(arm: Arm, tracker: ValueTracker, drawn: NDArray[np.int64], scores: Array) -> tuple[Array, Array]:
    """[B] baselines and [B] advantages of a batch."""
    units = np.unique(drawn, return_inverse=True)[1]
    if arm.group > 1:
        baselines = leave_one_out(scores, units)
        if arm.deviation:
            return baselines, grpo_advantages(scores, units, floor=FLOOR)
        return baselines, normalise(scores - baselines, FLOOR)
    fresh = ~tracker.seen(drawn) & (np.bincount(units)[units] > 1)
    baselines = np.where(fresh, leave_one_out(scores, units), tracker.values(drawn))
    return baselines, normalise(scores - baselines, FLOOR)


def fold(tracker: ValueTracker, sampler: PromptSampler, drawn: NDArray[np.int64], scores: Array) -> None:
    """Fold a batch; then its prompts can be drawn again."""
    for prompt, score in zip(drawn.tolist(), scores.tolist(), strict=True):
        tracker.fold(prompt, score, start_clock=0.0, weight=sampler.weight(prompt))
    if isinstance(tracker, TrendTracker):
        tracker.end_batch()
    for prompt in dict.fromkeys(drawn.tolist()):
        sampler.folded(prompt)


@dataclass(frozen=True)
class Tide:
    """A policy that moves by itself."""

    name: str
    prompts: int
    steps: int
    batch: int
    rise: float
    """Logits that all prompts gain in all."""
    apart: float = 0.0
    """Deviation of what each prompt gains besides, in logits, at the end."""


TIDES = (
    Tide("learning fast", 250, 64, 32, 5.0),
    Tide("learning slowly", 2_000, 200, 256, 1.5),
    Tide("each prompt its own way", 2_000, 200, 256, 1.5, apart=1.0),
    Tide("no learning", 2_000, 200, 256, 0.0),
)


def drift(tide: Tide, arm: Arm, seed: int) -> dict[str, float]:
    """Error of an arm's baselines while the policy moves by itself; the trend at the end."""
    rng = np.random.default_rng(seed)
    policy, tracker = Policy(tide.prompts, 0.0, rng), make_tracker(arm, tide.prompts)
    draws, errors = Draws(arm, tracker, seed), []
    for _ in range(tide.steps):
        drawn = np.array(draws.batch(tide.batch))
        success = policy.success(drawn)
        scores = (rng.random(len(drawn)) < success).astype(float)
        errors.append(float(np.mean((credit(arm, tracker, drawn, scores)[0] - success) ** 2)))
        fold(tracker, draws.sampler, drawn, scores)
        policy.raise_all(tide.rise / tide.steps, tide.apart / tide.steps**0.5, rng)
    trend = float(tracker.trend[0]) if isinstance(tracker, TrendTracker) else 0.0
    return {"error": float(np.mean(errors)), "trend": trend}


def difference(one: list[dict[str, float]], other: list[dict[str, float]], key: str) -> str:
    """Mean and 95 % interval of what the first is above the second, paired by seed."""
    values = [a[key] - b[key] for a, b in zip(one, other, strict=True)]
    half = student_t_quantile(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    mean = np.mean(values)
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


class Kept:
    """Runs that are played once: a line of a file for each, so that a sweep which was stopped goes on."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self._found: dict[str, dict[str, float]] = dict(json.loads(line) for line in lines)

    def __call__(self, run: Callable[..., dict[str, float]], *job: Any) -> dict[str, float]:
        """The result of `run(*job)`, from the file where it is there."""
        key = " / ".join(str(getattr(part, "name", part)) for part in job)
        if key not in self._found:
            self._found[key] = run(*job)
            if self._path:
                with self._path.open("a") as file:
                    file.write(json.dumps([key, self._found[key]]) + "\n")
        return self._found[key]


def closed_loop(arms: Sequence[Arm], rates: Sequence[float], seeds: int, kept: Kept) -> Iterator[Row]:
    """The arms in every regime, each at its best rate."""
    for prompts in REGIMES:
        best = {arm.name: best_rate(arm, prompts, rates, kept) for arm in arms}
        runs = {
            arm.name: [kept(play, arm, prompts, best[arm.name], seed) for seed in range(seeds)]
            for arm in arms
        }
        yield {"prompts": prompts, "rates": best, "runs": runs}


def best_rate(arm: Arm, prompts: int, rates: Sequence[float], kept: Kept) -> float:
    """The rate that ends best on seeds of its own; one that stands alone is not tried."""
    if len(rates) == 1:
        return rates[0]
    ends = [np.mean([kept(play, arm, prompts, rate, seed)["success"] for seed in TRIED]) for rate in rates]
    return rates[int(np.argmax(ends))]


def print_regime(row: Row) -> None:
    """A table of one regime, and spo_plus against the best of the others."""
    runs: dict[str, list[dict[str, float]]] = row["runs"]
    rates: dict[str, float] = row["rates"]
    print(f"\n{row['prompts']} prompts, {BATCH * STEPS / int(str(row['prompts'])):.1f} episodes a prompt")
    print(f"  {'arm':16}{'rate':>6}{'success':>9}{'curve':>8}{'baseline error':>16}{'seen':>7}")
    for name, found in runs.items():
        means = {key: np.mean([run[key] for run in found]) for key in found[0]}
        print(
            f"  {name:16}{rates[name]:>6}{means['success']:>9.3f}{means['curve']:>8.3f}"
            f"{means['error']:>16.4f}{means['seen']:>7.2f}"
        )
    for key in ("success", "curve") if "spo_plus" in runs and len(runs) > 1 else ():
        best = max(
            (name for name in runs if name != "spo_plus"), key=lambda n: np.mean([r[key] for r in runs[n]])
        )
        print(f"  {key}: spo_plus less {best}: {difference(runs['spo_plus'], runs[best], key)}")


def open_loop(seeds: int, kept: Kept) -> Iterator[Row]:
    """Baseline error of the trend against the plain tracker at the same forgetting."""
    arms = (ARMS[0], ARMS[1], Arm("trend", tracker="trend", rho=0.96))
    for tide in TIDES:
        runs = {arm.name: [kept(drift, tide, arm, seed) for seed in range(seeds)] for arm in arms}
        yield {"tide": asdict(tide), "runs": runs}


def print_tide(row: Row) -> None:
    """One line of errors."""
    runs: dict[str, list[dict[str, float]]] = row["runs"]
    errors = {name: float(np.mean([run["error"] for run in found])) for name, found in runs.items()}
    trends = [run["trend"] for run in runs["trend"]]
    gain = difference(runs["trend"], runs["spo, rho .96"], "error")
    name = str(row["tide"]["name"])
    shown = "  ".join(f"{arm} {error:.4f}" for arm, error in errors.items())
    print(
        f"{name:26}{shown}  trend less same rho {gain}; trend at the end "
        f"{np.mean(trends):+.2f} +- {np.std(trends):.2f}"
    )


def shown(rows: Iterable[Row], show: Callable[[Row], None]) -> list[Row]:
    """Print each row when it is there."""
    kept = []
    for row in rows:
        show(row)
        kept.append(row)
    return kept


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--open-loop", action="store_true")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="of the closed loop")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=RATES, help="of which each arm takes its best"
    )
    parser.add_argument("--kept", type=Path, help="file of runs played before; new ones are added to it")
    parser.add_argument("--show", type=Path, help="print the tables of an earlier output again")
    args = parser.parse_args()
    if args.show:
        found = json.loads(args.show.read_text().splitlines()[-1])
        shown(found["rows"], print_tide if found["open_loop"] else print_regime)
        return
    kept = Kept(args.kept)
    if args.open_loop:
        rows = shown(open_loop(args.seeds, kept), print_tide)
    else:
        arms = [arm for arm in ARMS if arm.name in (args.arms or [arm.name])]
        rows = shown(closed_loop(arms, args.rates, args.seeds, kept), print_regime)
    print(json.dumps({"benchmark": "tracker_regimes", "open_loop": args.open_loop, "rows": rows}))


if __name__ == "__main__":
    main()
