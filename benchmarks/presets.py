"""Presets and their parts on small tasks, at equal numbers of generated tokens.

    python -m benchmarks.presets sweep --study demo uneven rare --seeds 5 --out FOLDER   # resumable
    python -m benchmarks.presets table --study demo uneven rare --out FOLDER   # tables, SVGs, JSON lines

All arms of a study share model, prompts, engine, sandbox and schedule (`benchmarks.studies`). The curve is the
reward on held-out prompts against the tokens generated up to that moment: training episodes, also those not
learned from yet, and initial rollouts; not the evaluations themselves. Training reward is no fair curve: SPO
draws prompts that it half solves more often. Runs are made seed by seed over all arms, so that whatever is
finished is a comparison.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.storage.durable import write_file
from benchmarks.demo_run import Job, Row, file_name, mean_interval, play, study_parser, sweep
from benchmarks.hindsight import read_visits, scores_of_baselines
from benchmarks.studies import STUDIES, Study

KEPT = (
    "step", "reward_mean", "tokens_generated", "cpu_s", "time_s", "brier", "log_loss", "rho_mean",
    "advantage_std", "grad_norm", "entropy", "tool_calls_mean", "staleness_mean",
)  # fmt: skip


def run_one(study: Study, arm: str, seed: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """One run, until the first evaluation after the study's training tokens."""
    generated = 0

    def enough(row: Row) -> bool:
        nonlocal generated
        generated = row.get("tokens_generated", generated)
        return row["kind"] == "eval" and generated >= study.tokens

    settings = (*study.common, *study.arms[arm], *flags, f"--run.seed={seed}")
    started, cpu = time.monotonic(), cpu_seconds()
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        model = [f"--model.path={study.model(Path(folder), seed)}"] if study.model else []
        rows = play(
            (*settings, *model), enough, look=lambda run: {"baselines": scores_of_baselines(read_visits(run))}
        )
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
        "cpu_s": steps[-1]["cpu_s"] - cpu,
        "baselines": rows[-1]["baselines"],
        "evals": evals,
        "steps": steps,
    }


def curve(run: Row, *, count_initial: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and held-out reward of each evaluation; initial rollouts are a flat piece at the start."""
    initial = run["initial_tokens"] if count_initial else 0
    tokens = [0.0] + [float(initial + row["tokens"]) for row in run["evals"]]
    rewards = [run["evals"][0]["reward"]] + [row["reward"] for row in run["evals"]]
    return np.array(tokens), np.array(rewards)


def summarise(run: Row, study: Study, *, count_initial: bool = True) -> dict[str, float]:
    """Reward at half of and at all `tokens`, mean of the curve up to there, tokens to the threshold."""
    x, y = curve(run, count_initial=count_initial)
    tokens = study.tokens
    grid = np.linspace(0.0, tokens, 561)
    values = np.interp(grid, x, y)
    above = np.flatnonzero(values >= study.threshold)
    return {
        "half": float(np.interp(tokens / 2, x, y)),
        "end": float(np.interp(tokens, x, y)),
        "mean": float(values.mean()),
        "tokens_to_threshold": float(grid[above[0]]) if len(above) else float("inf"),
    }


def table(runs: Sequence[Row], study: Study) -> list[dict[str, Any]]:
    """Per arm: means over seeds with 95 % intervals, and differences from the reference paired by seed."""
    by_arm: dict[str, dict[int, Row]] = {arm: {} for arm in study.arms}
    for run in runs:
        by_arm[run["arm"]][run["seed"]] = run
    reference = {seed: summarise(run, study) for seed, run in by_arm[study.reference].items()}
    rows: list[dict[str, Any]] = []
    for arm, found in by_arm.items():
        for count_initial in (True, False):
            if not found or (not count_initial and not any(r["initial_tokens"] for r in found.values())):
                continue
            each = {seed: summarise(run, study, count_initial=count_initial) for seed, run in found.items()}
            row = _row(each, found, {} if arm == study.reference else reference)
            rows.append({"arm": arm if count_initial else f"{arm}, not counted", **row})
    return rows


def _row(
    each: dict[int, dict[str, float]], runs: dict[int, Row], reference: dict[int, dict[str, float]]
) -> dict[str, Any]:
    """One arm's numbers, and by how much they exceed those of the runs of the same seeds in `reference`."""
    row: dict[str, Any] = {
        "seeds": len(each),
        "initial_tokens": float(np.mean([run["initial_tokens"] for run in runs.values()])),
        "cpu_s": float(np.median([run["cpu_s"] for run in runs.values()])),
        "entropy": float(np.mean([run["steps"][-1]["entropy"] for run in runs.values()])),
    }
    both = sorted(set(each) & set(reference))
    for name in ("half", "end", "mean"):
        row[name] = mean_interval([summary[name] for summary in each.values()])
        if both:
            row[f"{name}_difference"] = mean_interval(
                [each[seed][name] - reference[seed][name] for seed in both]
            )
    reached = float(np.median([summary["tokens_to_threshold"] for summary in each.values()]))
    row["tokens_to_threshold"] = reached if np.isfinite(reached) else None
    return row


def _interval(values: Sequence[float], sign: str = "") -> str:
    mean, low, high = values
    if low == high:  # a single run
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def markdown(rows: Sequence[dict[str, Any]], study: Study) -> str:
    """The table of a study."""
    half, full = f"{study.tokens // 2:,}", f"{study.tokens:,}"
    columns = (
        *("arm", "seeds", f"reward at {half} tokens", f"at {full}", "mean of the curve"),
        *(f"less {study.reference}'s", f"tokens to {study.threshold}", "entropy at the end", "CPU s"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        difference = _interval(row["mean_difference"], "+") if "mean_difference" in row else ""
        reached = row["tokens_to_threshold"]
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {_interval(row['half'])} | {_interval(row['end'])} | "
            f"{_interval(row['mean'])} | {difference} | "
            f"{'not reached' if reached is None else f'{reached:,.0f}'} | {row['entropy']:.3f} | "
            f"{row['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def calibration(runs: Sequence[Row], study: Study) -> str:
    """Table of Brier scores of baselines, and by how much they exceed those of the smoother in hindsight."""
    lines = ["| arm | episodes | Brier score | smoother's | excess |", "|---|---|---|---|---|"]
    for arm in study.arms:
        for which in ("all", "seen before"):
            found = [run["baselines"][which] for run in runs if run["arm"] == arm and "baselines" in run]
            found = [one for one in found if one["episodes"]]
            if found:
                brier, smoother, excess = (
                    [one[name] for one in found] for name in ("brier", "smoother", "excess")
                )
                lines.append(
                    f"| {arm} | {which}, {sum(one['episodes'] for one in found):,} | {np.mean(brier):.3f} | "
                    f"{np.mean(smoother):.3f} | {_interval(mean_interval(excess))} |"
                )
    return "\n".join(lines)


def drawing(runs: Sequence[Row], study: Study) -> str:
    """The curves as an SVG: mean over seeds with its 95 % interval."""
    from benchmarks.drawing import Line, line_chart

    grid = np.linspace(0.0, study.tokens, 57)
    lines = []
    for arm in study.arms:
        each = [np.interp(grid, *curve(run)) for run in runs if run["arm"] == arm]
        if each:
            points = [mean_interval([float(values[k]) for values in each]) for k in range(len(grid))]
            lines.append(Line(arm, list(grid), *map(list, zip(*points, strict=True))))
    return line_chart(lines, x_label="generated tokens, initial rollouts counted", y_label="held-out reward")


def play_here(studies: Sequence[str], seeds: int, out: Path) -> None:
    """Make the missing runs in this process, one after another: its imports are paid once."""
    for seed, study in itertools.product(range(seeds), studies):
        for arm in STUDIES[study].arms:
            result = result_path(out, study, arm, seed)
            if not result.exists():
                keep(run_one(STUDIES[study], arm, seed), study, result)


def keep(run: Row, study: str, result: Path) -> None:
    """Write a run, and a line of it."""
    write_file(result, json.dumps(run).encode(), "result")
    print(
        f"{study}, {run['arm']}, seed {run['seed']}: {run['evals'][-1]}, {run['cpu_s']:.0f} CPU s", flush=True
    )


def result_path(out: Path, study: str, arm: str, seed: int) -> Path:
    """Where a run stands."""
    return out / study / f"{file_name(arm)}_seed{seed}.json"


def jobs(studies: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """Seed by seed over all studies and arms."""
    return [
        Job(("one", "--study", study, "--arm", arm, "--seed", str(seed), "--out", str(result)), result)
        for seed in range(seeds)
        for study in studies
        for arm in STUDIES[study].arms
        for result in [result_path(out, study, arm, seed)]
    ]


def show(study: str, out: Path) -> None:
    """Print the tables of a study and draw its curves."""
    runs = [json.loads(path.read_text()) for path in sorted((out / study).glob("*.json"))]
    rows = table(runs, STUDIES[study])
    print(f"\n{study}\n\n{markdown(rows, STUDIES[study])}\n\n{calibration(runs, STUDIES[study])}\n")
    write_file(out / f"{study}.svg", drawing(runs, STUDIES[study]).encode(), "drawing")
    print(json.dumps({"benchmark": "presets", "study": study, "rows": rows}))


def main() -> None:
    """Run one, sweep, or make tables."""
    parser = study_parser(__doc__, "docs/results/presets", None, 5)
    parser.add_argument("--study", nargs="+", choices=tuple(STUDIES), default=["demo", "uneven", "rare"])
    parser.add_argument("--parallel", type=int, default=1, help="processes; 0 plays all runs in this one")
    options = parser.parse_args()
    if options.what == "one":
        study = options.study[0]
        keep(run_one(STUDIES[study], options.arm, options.seed), study, options.out)
        return
    if options.what == "sweep" and not options.parallel:
        play_here(options.study, options.seeds, options.out)
    elif options.what == "sweep":
        failed = sweep(
            "benchmarks.presets",
            jobs(options.study, options.seeds, options.out.absolute()),
            parallel=options.parallel,
            wrap=options.wrap.split(),
            limit_s=3600.0,
        )
        if failed:
            raise SystemExit(f"{failed} runs failed; the same command does them again")
    for study in options.study:
        show(study, options.out)


if __name__ == "__main__":
    main()
