"""How well the value tracker predicts: drift by clock, by replay, or not measured, on real runs of the demo.

    python -m benchmarks.calibration sweep --seeds 3 --out docs/results/calibration    # resumable
    python -m benchmarks.calibration table --out docs/results/calibration              # tables, JSON line

All arms are the demo as shipped but for the drift, 40 steps of 64 episodes. Each episode's baseline, read
before its reward was folded, is compared with that reward: Brier score, log loss, reliability curve. The
first batches hold first visits, which no drift rule touches, so numbers are also given from step 9 on. Cost
is the CPU time of the whole run, all of its processes but the sandbox's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_run import Job, Row, file_name, mean_interval, play, sweep

ARMS: dict[str, tuple[str, ...]] = {
    "clock": ("--tracker.drift=clock",),
    "replay": ("--tracker.drift=replay",),
    "constant .875": ("--tracker.drift=constant", "--tracker.rho_constant=0.875"),
    "constant .96": ("--tracker.drift=constant", "--tracker.rho_constant=0.96"),
}
STEPS = 40
SETTLED = 9
"""First step of the second set of numbers: 512 episodes over 250 prompts have been seen by then."""
KEPT = (
    "step", "episodes", "reward_mean", "baseline_mean", "brier", "log_loss", "reliability", "clock", "rho_mean",
    "rho_quartiles", "cpu_s",
)  # fmt: skip


def run_one(arm: str, seed: int) -> dict[str, Any]:
    """One run of the demo with the drift rule of `arm`."""
    flags = (f"--run.steps={STEPS}", f"--run.seed={seed}", "--eval.data=", *ARMS[arm])
    rows = play(flags, lambda row: False)
    steps = [{name: row.get(name) for name in KEPT} for row in rows if row["kind"] == "step"]
    return {"arm": arm, "seed": seed, "flags": flags, "steps": steps}


def reliability(runs: Sequence[Row], first: int) -> dict[str, tuple[int, float, float]]:
    """Bin of ten -> episodes, mean baseline, mean score, over all runs from step `first` on."""
    sums: dict[int, np.ndarray] = {}
    for run in runs:
        for row in run["steps"]:
            if row["step"] >= first:
                for name, (count, predicted, observed) in row["reliability"].items():
                    total = sums.setdefault(int(name), np.zeros(3))
                    total += (count, count * predicted, count * observed)
    return {f"{bin / 10:.1f}": (int(n), p / n, o / n) for bin, (n, p, o) in sorted(sums.items())}


def summarise(run: Row, first: int) -> dict[str, float]:
    """Means over the steps from `first` on (all batches are of one size), and the cost of the whole run."""
    steps = [row for row in run["steps"] if row["step"] >= first]
    mean = {
        name: float(np.mean([row[name] for row in steps]))
        for name in ("brier", "log_loss", "reward_mean", "baseline_mean", "rho_mean")
    }
    return mean | {
        "rho_least": min(row["rho_quartiles"][0] for row in steps),
        "rho_greatest": max(row["rho_quartiles"][4] for row in steps),
        "last_reward": float(np.mean([row["reward_mean"] for row in run["steps"][-4:]])),
        "cpu_s": run["steps"][-1]["cpu_s"],
    }


def table(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Per arm: mean over seeds with a 95 % interval, from the first step and from `SETTLED` on."""
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        found = [run for run in runs if run["arm"] == arm]
        for first in (1, SETTLED):
            if not found:
                continue
            values = [summarise(run, first) for run in found]
            rows.append(
                {"arm": arm, "from_step": first, "runs": len(found)}
                | {name: mean_interval([value[name] for value in values]) for name in values[0]}
                | {"reliability": reliability(found, first)}
            )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The tables as text."""
    head = f"{'drift':15} {'from':>4} {'runs':>4}  {'Brier score':22}  {'log loss, nats':22}  "
    print(head + f"{'mean rho':9} {'rho, range':14} {'CPU s':6} last reward")
    for row in rows:
        brier, loss = ("{:.4f} [{:.4f}, {:.4f}]".format(*row[name]) for name in ("brier", "log_loss"))
        span = f"{row['rho_least'][0]:.3f}-{row['rho_greatest'][0]:.3f}"
        print(
            f"{row['arm']:15} {row['from_step']:4} {row['runs']:4}  {brier:22}  {loss:22}  "
            f"{row['rho_mean'][0]:<9.4f} {span:14} {row['cpu_s'][0]:<6.0f} "
            f"{row['last_reward'][0]:.3f}"
        )
    print(f"\nreliability from step {SETTLED} on: bin of the baseline, episodes, mean baseline -> mean score")
    for row in rows:
        if row["from_step"] == SETTLED:
            bins = "  ".join(f"{b}: {n} {p:.2f}->{o:.2f}" for b, (n, p, o) in row["reliability"].items())
            print(f"{row['arm']:15} {bins}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one arm, all of them, or print what they came to; the table's last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("one")
    one.add_argument("--arm", choices=list(ARMS), required=True)
    one.add_argument("--seed", type=int, required=True)
    every = commands.add_parser("sweep")
    every.add_argument("--seeds", type=int, default=3)
    every.add_argument("--parallel", type=int, default=1)
    every.add_argument("--wrap", nargs=argparse.REMAINDER, default=[], help="last: a command before each run")
    shown = commands.add_parser("table")
    for command in (one, every, shown):
        command.add_argument("--out", type=Path, default=Path("docs/results/calibration"))
    options = parser.parse_args(arguments)
    if options.command == "one":
        run = run_one(options.arm, options.seed)
        options.out.mkdir(parents=True, exist_ok=True)
        path_of(options.out, options.arm, options.seed).write_text(json.dumps(run) + "\n")
        print(json.dumps({"arm": run["arm"], "seed": run["seed"], **summarise(run, SETTLED)}))
        return 0
    if options.command == "sweep":
        jobs = [
            Job(
                ("one", "--arm", arm, "--seed", str(seed), "--out", str(options.out.resolve())),
                path_of(options.out.resolve(), arm, seed),
            )
            for seed in range(options.seeds)
            for arm in ARMS
        ]
        return sweep(
            "benchmarks.calibration", jobs, parallel=options.parallel, wrap=options.wrap, limit_s=3600
        )
    rows = table([json.loads(path.read_text()) for path in sorted(options.out.glob("*_seed*.json"))])
    show(rows)
    print(json.dumps(rows))
    return 0


def path_of(folder: Path, arm: str, seed: int) -> Path:
    """Where a run's numbers are kept."""
    return folder / f"{file_name(arm)}_seed{seed}.json"


if __name__ == "__main__":
    raise SystemExit(main())
