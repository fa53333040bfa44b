"""SPO, GRPO and SPO's ablations on the demo's task, at equal numbers of generated tokens.

    python -m benchmarks.spo_vs_grpo sweep --seeds 5 --out docs/results/spo_vs_grpo   # resumable: done runs are skipped
    python -m benchmarks.spo_vs_grpo table --out docs/results/spo_vs_grpo             # tables, SVG, JSON line

All arms share the demo's model, prompts, engine, sandbox and schedule, but learn faster than the demo so
that a run takes half a CPU minute: learning rate 1e-4 and no KL term (the paper has none; with one, an arm
whose advantages are smaller would also be held more firmly). The curve is the reward on 128 held-out prompts,
evaluated every 4th version, against the tokens generated up to that moment: training episodes, also those
not learned from yet, and initial rollouts; not the evaluations themselves. Training reward is no fair curve:
SPO draws prompts that it half solves more often.

`--uneven` repeats some arms where half of the training prompts can never be solved
(`benchmarks.uneven_arithmetic`): the demo's own prompts are about equally hard, which leaves a value per
prompt little to know.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.storage.durable import write_file
from benchmarks.demo_run import Job, Row, file_name, mean_interval, play, sweep

COMMON = (
    "--run.steps=200",
    "--learner.learning_rate=1e-4",
    "--loss.kl_coefficient=0",
    "--eval.every=4",
    "--eval.limit=128",
)
GRPO = (
    "--estimator.kind=grpo",
    "--estimator.group_size=8",
    "--sampler.kind=uniform",
    "--tracker.drift=constant",  # nobody reads the tracker
)
ARMS: dict[str, tuple[str, ...]] = {
    "SPO": (),
    "GRPO, groups of 8": GRPO,
    "SPO, no baseline": ("--estimator.kind=no_baseline",),
    "SPO, no normalisation": ("--estimator.normalise=none",),
    "SPO, uniform sampling": ("--sampler.kind=uniform",),
    "SPO, constant rho": ("--tracker.drift=constant",),
    "SPO, 2 initial rollouts": ("--tracker.initial_rollouts=2",),
    "SPO, 8 initial rollouts": ("--tracker.initial_rollouts=8",),
}
UNEVEN = ("--env.name=benchmarks.uneven_arithmetic:UnevenArithmetic",)
UNEVEN_ARMS = (
    "SPO",
    "GRPO, groups of 8",
    "SPO, no baseline",
    "SPO, uniform sampling",
    "SPO, no normalisation",
)
TOKENS = 28_000
"""Generated tokens that the arms are compared at."""
THRESHOLD = 0.8
KEPT = (
    "step", "reward_mean", "tokens_generated", "cpu_s", "time_s", "brier", "log_loss", "rho_mean",
    "advantage_std", "grad_norm", "entropy", "tool_calls_mean", "staleness_mean",
)  # fmt: skip


def run_one(arm: str, seed: int, *, tokens: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """One run, until the first evaluation after `tokens` training tokens."""
    generated = 0

    def enough(row: Row) -> bool:
        nonlocal generated
        generated = row.get("tokens_generated", generated)
        return row["kind"] == "eval" and generated >= tokens

    settings = (*COMMON, *ARMS[arm], *flags, f"--run.seed={seed}")
    started = time.monotonic()
    rows = play(settings, enough)
    steps = [{name: row[name] for name in KEPT} for row in rows if row["kind"] == "step"]
    at_step = {row["step"]: row["tokens_generated"] for row in steps}
    evals = [
        {"step": row["step"], "tokens": at_step.get(row["step"], 0), "reward": row["reward_mean"]}
        for row in rows
        if row["kind"] == "eval"
    ]
    initial = sum(row["tokens"] for row in rows if row["kind"] == "initial")
    return {
        "arm": arm,
        "seed": seed,
        "flags": settings,
        "initial_tokens": initial,
        "wall_s": time.monotonic() - started,
        "cpu_s": steps[-1]["cpu_s"],
        "evals": evals,
        "steps": steps,
    }


def curve(run: Row, *, count_initial: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and held-out reward of each evaluation; initial rollouts are a flat piece at the start."""
    initial = run["initial_tokens"] if count_initial else 0
    tokens = [0.0] + [float(initial + row["tokens"]) for row in run["evals"]]
    rewards = [run["evals"][0]["reward"]] + [row["reward"] for row in run["evals"]]
    return np.array(tokens), np.array(rewards)


def summarise(run: Row, tokens: int, *, count_initial: bool = True) -> dict[str, float]:
    """Reward at half of and at all `tokens`, mean of the curve up to there, tokens to the threshold."""
    x, y = curve(run, count_initial=count_initial)
    grid = np.linspace(0.0, tokens, 561)
    values = np.interp(grid, x, y)
    above = np.flatnonzero(values >= THRESHOLD)
    return {
        "half": float(np.interp(tokens / 2, x, y)),
        "end": float(np.interp(tokens, x, y)),
        "mean": float(values.mean()),
        "tokens_to_threshold": float(grid[above[0]]) if len(above) else float("inf"),
    }


def table(runs: Sequence[Row], tokens: int) -> list[dict[str, Any]]:
    """Per arm: means over seeds with 95 % intervals, and differences from SPO paired by seed."""
    by_arm: dict[str, dict[int, Row]] = {arm: {} for arm in ARMS}
    for run in runs:
        by_arm[run["arm"]][run["seed"]] = run
    reference = {seed: summarise(run, tokens) for seed, run in by_arm["SPO"].items()}
    rows: list[dict[str, Any]] = []
    for arm, found in by_arm.items():
        for count_initial in (True, False):
            if not found or (not count_initial and not any(r["initial_tokens"] for r in found.values())):
                continue
            each = {seed: summarise(run, tokens, count_initial=count_initial) for seed, run in found.items()}
            both = sorted(set(each) & set(reference))
            row: dict[str, Any] = {
                "arm": arm if count_initial else f"{arm}, not counted",
                "seeds": len(each),
                "initial_tokens": float(np.mean([run["initial_tokens"] for run in found.values()])),
                "cpu_s": float(np.median([run["cpu_s"] for run in found.values()])),
            }
            for name in ("half", "end", "mean"):
                row[name] = mean_interval([summary[name] for summary in each.values()])
                if arm != "SPO" and both:
                    differences = [each[seed][name] - reference[seed][name] for seed in both]
                    row[f"{name}_difference"] = mean_interval(differences)
            reached = float(np.median([summary["tokens_to_threshold"] for summary in each.values()]))
            row["tokens_to_threshold"] = reached if np.isfinite(reached) else None
            rows.append(row)
    return rows


def _interval(values: Sequence[float], sign: str = "") -> str:
    mean, low, high = values
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def markdown(rows: Sequence[dict[str, Any]], tokens: int) -> str:
    """The table of docs/spo.md."""
    lines = [
        f"| arm | seeds | reward at {tokens // 2:,} tokens | at {tokens:,} | mean of the curve | less SPO's | tokens to {THRESHOLD} | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = _interval(row["mean_difference"], "+") if "mean_difference" in row else ""
        reached = row["tokens_to_threshold"]
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {_interval(row['half'])} | {_interval(row['end'])} | "
            f"{_interval(row['mean'])} | {difference} | "
            f"{'not reached' if reached is None else f'{reached:,.0f}'} | {row['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def drawing(runs: Sequence[Row], tokens: int) -> str:
    """The curves as an SVG: mean over seeds with its 95 % interval."""
    from benchmarks.drawing import Line, line_chart

    grid = np.linspace(0.0, tokens, 57)
    lines = []
    for arm in ARMS:
        each = [np.interp(grid, *curve(run)) for run in runs if run["arm"] == arm]
        if each:
            points = [mean_interval([float(values[k]) for values in each]) for k in range(len(grid))]
            lines.append(Line(arm, list(grid), *map(list, zip(*points, strict=True))))
    return line_chart(lines, x_label="generated tokens, initial rollouts counted", y_label="held-out reward")


def jobs(seeds: int, out: Path, tokens: int, *, uneven: bool) -> list[Job]:
    """Seed by seed, so that whatever is finished is a comparison."""
    return [
        Job(
            (
                *("one", "--arm", arm, "--seed", str(seed), "--tokens", str(tokens), "--out", str(result)),
                *(["--uneven"] if uneven else []),
            ),
            result,
        )
        for seed in range(seeds)
        for arm in (UNEVEN_ARMS if uneven else ARMS)
        for result in [out / "runs" / f"{file_name(arm)}_seed{seed}.json"]
    ]


def main() -> None:
    """Run one, sweep, or make tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("one", "sweep", "table"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/spo_vs_grpo"))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--wrap", default="", help="command put before each run, for example 'nice -n 10'")
    parser.add_argument("--uneven", action="store_true", help="half of the training prompts are unsolvable")
    parser.add_argument("--arm", choices=tuple(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "one":
        flags = UNEVEN if options.uneven else ()
        run = run_one(options.arm, options.seed, tokens=options.tokens, flags=flags)
        write_file(options.out, json.dumps(run).encode(), "result")
        last = run["evals"][-1]
        print(f"{run['arm']}, seed {run['seed']}: {last}, {run['cpu_s']:.0f} CPU s, {run['wall_s']:.0f} s")
        return
    if options.what == "sweep":
        failed = sweep(
            "benchmarks.spo_vs_grpo",
            jobs(options.seeds, options.out.absolute(), options.tokens, uneven=options.uneven),
            parallel=options.parallel,
            wrap=options.wrap.split(),
            limit_s=3600.0,
        )
        if failed:
            raise SystemExit(f"{failed} runs failed; the same command does them again")
    runs = [json.loads(path.read_text()) for path in sorted((options.out / "runs").glob("*.json"))]
    rows = table(runs, options.tokens)
    print(markdown(rows, options.tokens))
    write_file(options.out / "curves.svg", drawing(runs, options.tokens).encode(), "drawing")
    print(json.dumps({"benchmark": "spo_vs_grpo", "tokens": options.tokens, "rows": rows}))


if __name__ == "__main__":
    main()
