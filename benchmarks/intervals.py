"""Coverage of the 95% intervals by simulation: `python -m benchmarks.intervals [--repeats 4000]`.

Per-problem rates are drawn from beta distributions of several spreads (concentration a + b from 0.3, nearly
all problems always or never right, to 30, nearly equal ones), answers from those rates, and the code users
run makes the interval. `new_problems` must cover the population mean, `same_problems` the mean of the drawn
rates (covered share averaged over drawn sets of problems). Wald's interval stands beside for comparison.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from agentrl.evaluation.statistics.estimators import pass_at_k_table
from agentrl.evaluation.statistics.intervals import (
    new_problems_bounds,
    paired_bounds,
    pass_variances,
    rate_prior,
    rate_variances,
    same_problems_bounds,
    same_problems_interval,
)
from agentrl.evaluation.statistics.quantiles import student_t_quantile
from agentrl.evaluation.statistics.voting import Ballot, majority_variance

CONCENTRATIONS = (0.3, 1.0, 4.0, 30.0)
MEANS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
SETS_OF_PROBLEMS = 20


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    what: str
    problems: int
    samples: int
    concentration: float
    mean: float
    coverage: float
    missed_below: float
    missed_above: float
    width: float
    compared: float
    """Coverage of Student's t (Wald's with Student's quantile) on the same draws."""


def _rates(rng: np.random.Generator, mean: float, concentration: float, shape: tuple[int, ...]) -> np.ndarray:
    return rng.beta(mean * concentration, (1.0 - mean) * concentration, shape)


def _cell(what: str, settings: tuple[int, int, float, float], truth, low, high, compared: float) -> Cell:
    below, above = float(np.mean(low > truth)), float(np.mean(high < truth))
    return Cell(what, *settings, 1.0 - below - above, below, above, float(np.mean(high - low)), compared)


def _student(values: np.ndarray, truth: float) -> float:
    count = values.shape[1]
    half = student_t_quantile(0.975, count - 1) * np.sqrt(values.var(axis=1, ddof=1) / count)
    return float(np.mean(np.abs(values.mean(axis=1) - truth) <= half + 1e-12))


def new_problems(rng, problems: int, samples: int, repeats: int) -> Iterator[Cell]:
    """avg@k against the population mean."""
    for concentration in CONCENTRATIONS:
        for mean in MEANS:
            rates = _rates(rng, mean, concentration, (repeats, problems))
            values = rng.binomial(samples, rates) / samples
            low, high, _ = new_problems_bounds(values)
            settings = (problems, samples, concentration, mean)
            yield _cell("new_problems avg", settings, mean, low, high, _student(values, mean))


def new_problems_pass(rng, problems: int, samples: int, k: int, repeats: int) -> Iterator[Cell]:
    """pass@k against its population mean 1 - E (1 - p)^k."""
    table = pass_at_k_table(samples, k)
    for concentration in CONCENTRATIONS:
        for rate in MEANS:
            a, b = rate * concentration, (1.0 - rate) * concentration
            truth = 1.0 - math.prod((b + i) / (a + b + i) for i in range(k))
            counts = rng.binomial(samples, _rates(rng, rate, concentration, (repeats, problems)))
            values = table[counts]
            low, high, _ = new_problems_bounds(values)
            settings = (problems, samples, concentration, round(truth, 3))
            yield _cell(f"new_problems pass@{k}", settings, truth, low, high, _student(values, truth))


def same_problems(rng, problems: int, samples: int, repeats: int) -> Iterator[Cell]:
    """avg@k against the mean rate of the drawn problems."""
    for concentration in CONCENTRATIONS:
        for mean in MEANS:
            rates = np.repeat(_rates(rng, mean, concentration, (SETS_OF_PROBLEMS, problems)),
                              max(1, repeats // SETS_OF_PROBLEMS), axis=0)  # fmt: skip
            right = rng.binomial(samples, rates)
            drawn = np.full_like(right, samples)
            values = right.mean(axis=1) / samples
            truth = rates.mean(axis=1)
            variance = rate_variances(right, drawn).sum(axis=1) / problems**2
            low, high = same_problems_bounds(
                values, variance, np.full(len(values), float(problems * samples))
            )
            plain = (right * (samples - right)).sum(axis=1) / (samples**2 * max(1, samples - 1)) / problems**2
            wald = float(np.mean(np.abs(values - truth) <= 1.96 * np.sqrt(plain) + 1e-12))
            settings = (problems, samples, concentration, mean)
            yield _cell("same_problems avg", settings, truth, low, high, wald)


def same_problems_pass(rng, problems: int, samples: int, k: int, repeats: int) -> Iterator[Cell]:
    """pass@k against its mean over the drawn problems."""
    table = pass_at_k_table(samples, k)
    drawn = np.full(problems, samples)
    for concentration in CONCENTRATIONS:
        for mean in (0.05, 0.2, 0.5, 0.8):
            rates = np.repeat(_rates(rng, mean, concentration, (SETS_OF_PROBLEMS, problems)),
                              max(1, repeats // SETS_OF_PROBLEMS), axis=0)  # fmt: skip
            right = rng.binomial(samples, rates)
            truth = (1.0 - (1.0 - rates) ** k).mean(axis=1)
            values = table[right].mean(axis=1)
            variance = np.array([pass_variances(row, drawn, k).sum() for row in right]) / problems**2
            low, high = same_problems_bounds(values, variance, np.full(len(values), float(problems)))
            settings = (problems, samples, concentration, round(float(truth.mean()), 3))
            yield _cell(f"same_problems pass@{k}", settings, truth, low, high, math.nan)


def same_problems_majority(rng, problems: int, samples: int, repeats: int) -> Iterator[Cell]:
    """maj@n of n answers against its mean over the drawn problems; wrong answers fall into three classes."""
    wrong = np.array([0.6, 0.3, 0.1])
    right_class = (1.0, 0.0, 0.0, 0.0)
    for concentration in CONCENTRATIONS:
        for mean in (0.1, 0.35, 0.65, 0.9):
            hits: list[tuple[float, float, float]] = []
            for _ in range(SETS_OF_PROBLEMS):
                rates = _rates(rng, mean, concentration, (problems,))
                shares = np.column_stack([rates, np.outer(1.0 - rates, wrong)])
                truth = np.mean([_majority(rng.multinomial(samples, row, 4000)).mean() for row in shares])
                for _ in range(max(1, repeats // SETS_OF_PROBLEMS)):
                    counts = np.array([rng.multinomial(samples, row) for row in shares])
                    drawn = np.full(problems, samples)
                    a, b = rate_prior(counts[:, 0], drawn)
                    variances = []
                    for row in counts:
                        present = [i for i in range(4) if row[i]]
                        ballot = Ballot(tuple(row[present].tolist()), tuple(right_class[i] for i in present))
                        variances.append(
                            majority_variance(ballot, (float(a[0]), float(b[0])), rates=20, draws=20)
                        )
                    interval = same_problems_interval(float(_majority(counts).mean()), variances)
                    hits.append((interval.low, interval.high, float(truth)))
            low, high, truth = np.array(hits).T
            settings = (problems, samples, concentration, mean)
            yield _cell(f"same_problems maj@{samples}", settings, truth, low, high, math.nan)


def _majority(counts: np.ndarray) -> np.ndarray:
    winners = counts == counts.max(axis=1, keepdims=True)
    return winners[:, 0] / winners.sum(axis=1)


def paired(rng, problems: int, samples: int, repeats: int) -> Iterator[Cell]:
    """Difference of two policies whose log-odds differ by a constant and a random part per problem."""
    for concentration in CONCENTRATIONS:
        for mean in (0.1, 0.35, 0.65, 0.9):
            for shift, noise in ((0.0, 0.3), (0.5, 0.3), (0.5, 1.5)):
                wide = rng.standard_normal((repeats, problems)) * noise + shift
                first = np.clip(_rates(rng, mean, concentration, (repeats, problems)), 1e-9, 1 - 1e-9)
                second = 1.0 / (1.0 + np.exp(-(np.log(first) - np.log1p(-first) + wide)))
                truth = float((second - first).mean())  # over repeats x problems: the population's
                values = (rng.binomial(samples, second) - rng.binomial(samples, first)) / samples
                low, high, _ = paired_bounds(values)
                settings = (problems, samples, concentration, mean)
                name = f"paired shift {shift} noise {noise}"
                yield _cell(name, settings, truth, low, high, _student(values, truth))


def cells(repeats: int, seed: int, only: str = "") -> Iterator[Cell]:
    """The whole study, or the parts whose name begins with `only`; every part has a stream of its own."""
    quarter, few = repeats // 4, repeats // 20
    parts = [(f"new {n} {k}", lambda g, n=n, k=k: new_problems(g, n, k, repeats))
             for n, k in ((30, 1), (30, 4), (30, 32), (100, 4), (500, 4))]  # fmt: skip
    parts += [("new pass", lambda g: new_problems_pass(g, 30, 32, 8, repeats))]
    parts += [(f"same {n} {k}", lambda g, n=n, k=k: same_problems(g, n, k, repeats))
              for n, k in ((30, 2), (30, 4), (30, 32), (100, 4))]  # fmt: skip
    parts += [("same pass", lambda g: same_problems_pass(g, 30, 8, 4, quarter))]
    parts += [("same maj", lambda g: same_problems_majority(g, 30, 8, few))]
    parts += [(f"paired {n} {k}", lambda g, n=n, k=k: paired(g, n, k, repeats))
              for n, k in ((30, 1), (30, 4), (30, 32), (200, 4))]  # fmt: skip
    for number, (name, part) in enumerate(parts):
        if name.startswith(only):
            yield from part(np.random.default_rng([seed, number]))


def summary(rows: list[Cell]) -> str:
    """Least, mean and greatest coverage per estimand and size, in the middle and near the edges."""
    lines = [
        "| what | N | k | truth | cells | coverage least | mean | greatest | Wald/t least | mean width |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((r.what.split(" shift")[0], r.problems, r.samples) for r in rows))
    for key in keys:
        chosen = [r for r in rows if (r.what.split(" shift")[0], r.problems, r.samples) == key]
        bands = {".2 to .8": [r for r in chosen if 0.2 <= r.mean <= 0.8],
                 "outside": [r for r in chosen if not 0.2 <= r.mean <= 0.8]}  # fmt: skip
        for band, cells_ in bands.items():
            if not cells_:
                continue
            cover = [r.coverage for r in cells_]
            compared = min((r.compared for r in cells_), default=math.nan)
            lines.append(
                f"| {key[0]} | {key[1]} | {key[2]} | {band} | {len(cells_)} | {min(cover):.3f} | "
                f"{np.mean(cover):.3f} | {max(cover):.3f} | {compared:.3f} | "
                f"{np.mean([r.width for r in cells_]):.3f} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; with `--json` write every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only parts whose name begins so: new, same, paired")
    parser.add_argument("--json", default="", help="file for every cell")
    options = parser.parse_args(arguments)
    rows = list(cells(options.repeats, options.seed, options.only))
    print(summary(rows))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump([asdict(row) for row in rows], out, indent=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
