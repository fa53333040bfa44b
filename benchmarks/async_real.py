"""Wall time until a reward is reached, with real engine, sandbox and learner, for five schedules.

    python -m benchmarks.async_real sweep --out docs/results/async_real   # resumable: done runs are skipped
    python -m benchmarks.async_real table --out docs/results/async_real   # tables, SVG, JSON line

The arms are those of `async_simulation`, on the demo's task and model. Every episode waits once for a latency
that seed and dispatch index fixed beforehand (the mixtures of `benchmarks.simulation` at 1:100, so 1.0 s or
4.8 s; see `benchmarks.slow_arithmetic`). All arms have as many slots as episodes in a batch. Batches
are half the demo's (32) and the learning rate is 2e-4 without KL term, so that a batch costs well under a CPU second
and what is compared is the waiting.

Reached means: the mean reward of the last 128 graded episodes is at least 0.8. All episodes count in the order they
end, also those that dynamic sampling throws away, so that one rule serves all arms. SPO draws prompts
that it half solves more often, which makes its mean reward lower than under uniform drawing: to its disadvantage.
The clock starts when everything is up (engine compared with learner) and the first prompt is about to be drawn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.storage.durable import write_file
from benchmarks import slow_arithmetic
from benchmarks.demo_run import Job, Row, mean_interval, play, results, study_parser, sweep
from benchmarks.simulation import ARMS, Arm, SimulatedRun, mixture
from benchmarks.virtual_clock import run as run_virtually

BATCH = 32
SCALE = 0.01
"""Times the latencies of the mixtures."""
WINDOW = 128
THRESHOLD = 0.8
BARRIER, STREAMING = "GRPO with barrier", "streaming SPO"
SLOW_SHARES = (0.15, 0.05, 0.25)
COMMON = (
    "--run.steps=100",
    "--env.name=benchmarks.slow_arithmetic:SlowArithmetic",
    f"--env.settings.scale={SCALE}",
    "--eval.data=",
    "--learner.learning_rate=2e-4",
    "--loss.kl_coefficient=0",
    f"--learner.mini_batch={BATCH}",
    f"--stream.batch={BATCH}",
    f"--engine.slots={BATCH}",
)
KEPT = ("step", "reward_mean", "tokens_generated", "learner_idle_s", "learn_s", "staleness", "excess_share")


def arm_flags(arm: Arm) -> list[str]:
    """The settings that make an arm; the tracker's clock is switched off where nobody reads it."""
    flags = [f"--stream.staleness={arm.staleness}", f"--stream.stale_policy={arm.stale_policy}"]
    if arm.group > 1:
        flags += [
            "--estimator.kind=grpo",
            f"--estimator.group_size={arm.group}",
            f"--estimator.dynamic_sampling={str(arm.dynamic_sampling).lower()}",
            "--sampler.kind=uniform",
            "--tracker.drift=constant",
        ]
    return flags


def run_one(arm: Arm, slow: float, seed: int, *, threshold: float, flags: Sequence[str] = ()) -> Row:
    """One run, until the threshold or the last step."""
    graded = slow_arithmetic.GRADED
    first = len(graded)
    began, cpu_began = 0.0, 0.0
    steps: list[Row] = []

    def enough(row: Row) -> bool:
        nonlocal began, cpu_began
        if row["kind"] == "parity" and row["version"] == 0:
            began, cpu_began = time.monotonic(), cpu_seconds()
        if row["kind"] != "step":
            return False
        steps.append({"seconds": time.monotonic() - began, "cpu_s": cpu_seconds() - cpu_began})
        steps[-1] |= {name: row[name] for name in KEPT}
        return reached_at([reward for _, reward in graded[first:]], threshold) is not None

    settings = (*COMMON, *arm_flags(arm), f"--env.settings.slow={slow}", *flags, f"--run.seed={seed}")
    rows = play(settings, enough)
    (summary,) = (row for row in rows if row["kind"] == "summary")
    return {
        "arm": arm.name,
        "slow_share": slow,
        "seed": seed,
        "flags": settings,
        "discarded": sum(summary["discarded"].values()),
        "python_calls": summary["python_calls"],
        "graded": [[round(at - began, 3), reward] for at, reward in graded[first:]],
        "steps": steps,
    }


def reached_at(rewards: Sequence[float], threshold: float) -> int | None:
    """Index of the episode with which the mean of the last WINDOW rewards reaches the threshold first."""
    if len(rewards) < WINDOW:
        return None
    sums = np.concatenate(([0.0], np.cumsum(rewards)))
    found = np.flatnonzero((sums[WINDOW:] - sums[:-WINDOW]) / WINDOW >= threshold - 1e-9)
    return int(found[0]) + WINDOW - 1 if len(found) else None


def summarise(run: Row, threshold: float) -> dict[str, float | None]:
    """Numbers of one run; times in seconds, up to the threshold where it was reached."""
    steps = run["steps"]
    found = reached_at([reward for _, reward in run["graded"]], threshold)
    ages = {int(age): 0 for step in steps for age in step["staleness"]}
    for step in steps:
        for age, count in step["staleness"].items():
            ages[int(age)] += count
    learned = sum(ages.values())
    wall = steps[-1]["seconds"]
    return {
        "seconds": None if found is None else run["graded"][found][0],
        "episodes": None if found is None else found + 1,
        "steps": len(steps),
        "step_s": wall / len(steps),
        "cpu_s_per_step": steps[-1]["cpu_s"] / len(steps),
        "learner_idle_share": steps[-1]["learner_idle_s"] / wall,
        "staleness_mean": sum(age * count for age, count in ages.items()) / learned,
        "staleness_max": max(ages),
        "discarded_share": run["discarded"] / (run["discarded"] + learned),
    }


def waiting_alone(arm: Arm, slow: float, steps: int, draws: int = 20) -> float | None:
    """Mean seconds a step when nothing costs time but the latencies: the same schedule on a virtual clock.

    None for dynamic sampling, whose waste depends on the policy.
    """
    if arm.dynamic_sampling:
        return None
    simulated = [
        SimulatedRun(arm, mixture(slow), batch=BATCH, slots=BATCH, steps=steps, learn_s=0.0, seed=draw)
        for draw in range(draws)
    ]
    return float(np.mean([run_virtually(one.run()).seconds for one in simulated])) / steps * SCALE


def table(runs: Sequence[Row], threshold: float) -> list[dict[str, Any]]:
    """Per share of slow episodes and arm: medians over seeds, and the speed-up over the GRPO barrier by seed."""
    each = {(r["slow_share"], r["arm"], r["seed"]): summarise(r, threshold) for r in runs}
    rows: list[dict[str, Any]] = []
    for slow in sorted({key[0] for key in each}):
        for arm in ARMS:
            found = {seed: row for (s, name, seed), row in each.items() if (s, name) == (slow, arm.name)}
            if not found:
                continue
            row: dict[str, Any] = {"slow_share": slow, "arm": arm.name, "seeds": len(found)}
            for name in next(iter(found.values())):
                values = [numbers[name] for numbers in found.values()]
                known = [np.inf if value is None else float(value) for value in values]
                middle = float(np.median(known))
                row[name] = middle if np.isfinite(middle) else None
            row["seconds_each"] = [numbers["seconds"] for numbers in found.values()]
            row["waiting_alone_s"] = waiting_alone(arm, slow, steps=round(row["steps"]))
            ratios = [
                float(each[slow, BARRIER, seed]["seconds"]) / float(numbers["seconds"])
                for seed, numbers in found.items()
                if (slow, BARRIER, seed) in each
                and each[slow, BARRIER, seed]["seconds"] is not None
                and numbers["seconds"] is not None
            ]
            row["speed_up_each"] = ratios
            if ratios:
                row["speed_up"] = float(np.median(ratios))
                log = mean_interval([float(np.log(ratio)) for ratio in ratios])
                row["speed_up_interval"] = [float(np.exp(edge)) for edge in log[1:]]
            rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/async.md."""
    lines = [
        "| p | arm | seeds | seconds: median (each) | times sooner: median, 95 % interval | episodes | s a step | of it waiting | CPU s a step | learner idle | staleness: mean, largest | discarded |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = ", ".join("-" if value is None else f"{value:.0f}" for value in row["seconds_each"])
        middle = "not reached" if row["seconds"] is None else f"{row['seconds']:.0f}"
        sooner = ""
        if "speed_up" in row and row["arm"] != BARRIER:
            low, high = row["speed_up_interval"]
            sooner = f"{row['speed_up']:.2f} [{low:.2f}, {high:.2f}]"
        episodes = "-" if row["episodes"] is None else f"{row['episodes']:.0f}"
        waiting = "" if row["waiting_alone_s"] is None else f"{row['waiting_alone_s']:.1f}"
        lines.append(
            f"| {row['slow_share']} | {row['arm']} | {row['seeds']} | {middle} ({times}) | {sooner} | {episodes} | "
            f"{row['step_s']:.1f} | {waiting} | {row['cpu_s_per_step']:.2f} | {row['learner_idle_share']:.0%} | "
            f"{row['staleness_mean']:.2f}, {row['staleness_max']:.0f} | {row['discarded_share']:.0%} |"
        )
    return "\n".join(lines)


def drawing(runs: Sequence[Row], slow: float) -> str:
    """Moving mean of the reward over wall time for one share of slow episodes: mean and range over seeds."""
    from benchmarks.drawing import Line, line_chart

    chosen = [run for run in runs if run["slow_share"] == slow]
    lines = []
    for arm in ARMS:
        curves = []
        for run in chosen:
            if run["arm"] == arm.name:
                times, rewards = np.array(run["graded"]).T
                sums = np.concatenate(([0.0], np.cumsum(rewards)))
                curves.append((times[WINDOW - 1 :], (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW))
        if not curves:
            continue
        # From where every seed has a window to where the first one stops.
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 60)
        values = np.array([np.interp(grid, x, y) for x, y in curves])
        lines.append(
            Line(arm.name, list(grid), *(list(f(axis=0)) for f in (values.mean, values.min, values.max)))
        )
    return line_chart(
        lines,
        x_label="seconds",
        y_label=f"mean reward of the last {WINDOW} episodes, p = {slow}",
        note="line: mean over seeds; band: range",
    )


def jobs(seeds: int, slow_shares: Sequence[float], out: Path, threshold: float) -> list[Job]:
    """The five arms of one seed after each other, so that they meet about the same machine."""
    return [
        Job(
            (
                *("one", "--arm", arm.name, "--slow", str(slow), "--seed", str(seed)),
                *("--threshold", str(threshold), "--out", str(result)),
            ),
            result,
        )
        for slow in slow_shares
        for seed in range(seeds)
        for arm in ARMS
        for result in [out / "runs" / f"{arm.name.lower().replace(' ', '_')}_p{slow}_seed{seed}.json"]
    ]


def main() -> None:
    """Run one, sweep, or make tables."""
    parser = study_parser(__doc__, "docs/results/async_real", [arm.name for arm in ARMS], 3)
    parser.add_argument("--threshold", type=float, default=THRESHOLD)
    parser.add_argument("--slow", type=float, nargs="+", default=SLOW_SHARES)
    options = parser.parse_args()
    if options.what == "one":
        (arm,) = (arm for arm in ARMS if arm.name == options.arm)
        run = run_one(arm, options.slow[0], options.seed, threshold=options.threshold)
        write_file(options.out, json.dumps(run).encode(), "result")
        numbers = {k: v if v is None else round(v, 2) for k, v in summarise(run, options.threshold).items()}
        print(f"{arm.name}, p = {options.slow[0]}, seed {options.seed}: {numbers}")
        return
    if options.what == "sweep":
        failed = sweep(
            "benchmarks.async_real",
            jobs(options.seeds, options.slow, options.out.absolute(), options.threshold),
            parallel=1,  # two at once would slow each other down
            wrap=options.wrap.split(),
            limit_s=3600.0,
        )
        if failed:
            raise SystemExit(f"{failed} runs failed; the same command does them again")
    runs = results(options.out)
    rows = table(runs, options.threshold)
    print(markdown(rows))
    for slow in sorted({run["slow_share"] for run in runs}):
        write_file(options.out / f"curves_p{slow}.svg", drawing(runs, slow).encode(), "drawing")
    print(json.dumps({"benchmark": "async_real", "threshold": options.threshold, "rows": rows}))


if __name__ == "__main__":
    main()
