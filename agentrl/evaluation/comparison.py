"""Two evaluations of the same problems: difference, intervals, an exact test, and which problems changed.

Everything is paired by problem. Definitions: `docs/evaluation.md`. Knows nothing of files and policies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from agentrl.errors import DataError
from agentrl.evaluation.results import Record, by_problem
from agentrl.evaluation.statistics.estimators import pass_at_k
from agentrl.evaluation.statistics.intervals import (
    Interval,
    paired_interval,
    rate_variances,
    same_problems_difference,
)
from agentrl_envs.graders import UNDECIDED

EXACT_STATES = 4_000_000
"""Largest table of the exact sign-flip test; beyond it signs are drawn."""
FLIPS = 200_000


@dataclass(frozen=True, slots=True)
class ProblemChange:
    """One problem in both evaluations."""

    problem: str
    right_a: int
    drawn_a: int
    right_b: int
    drawn_b: int
    p_value: float
    """Fisher's exact test of this problem alone, two-sided."""
    flagged: bool
    """Among all problems, after Benjamini and Hochberg at 10% false discoveries."""

    @property
    def difference(self) -> float:
        """avg@k of B less that of A."""
        return self.right_b / self.drawn_b - self.right_a / self.drawn_a


@dataclass(frozen=True, slots=True)
class Excluded:
    """What of one evaluation does not take part, and what counts as wrong without a comparison."""

    answers: int
    """All episodes, failed ones included."""
    failed: int
    refused: int
    """Of the failed ones, those that the endpoint declined."""
    problems: int
    """Without any answer."""
    undecided: int
    """Answers that cannot be compared: wrong."""
    resampled: int
    """Answers whose own seed failed, so that they are paired with another."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> Excluded:
        """Count."""
        rows = by_problem(records).values()
        return cls(
            answers=len(records),
            failed=sum(r.failed for r in records),
            refused=sum(r.refused for r in records),
            problems=sum(all(r.failed for r in row) for row in rows),
            undecided=sum(r.verdict in UNDECIDED for r in records),
            resampled=sum(r.resampled for r in records),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """B less A."""

    problems: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    mean_a: float
    mean_b: float
    difference: float
    new_problems: Interval
    same_problems: Interval
    p_value: float
    test: str
    better: int
    worse: int
    equal: int
    pass_differences: dict[int, tuple[float, Interval]]
    """pass@k of B less that of A, with its interval over new problems."""
    changes: tuple[ProblemChange, ...]
    """All problems, the largest change first."""
    excluded: dict[str, Excluded]
    """Of `a` and of `b`."""
    scores: tuple[float, float, float, Interval] | None = None
    """Mean score of A and B, their difference and its interval over new problems; None without partial
    credit."""

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        data = asdict(self)
        data["pass_differences"] = {
            str(k): {"difference": value, **asdict(interval)}
            for k, (value, interval) in self.pass_differences.items()
        }
        return data


def compare(a: Sequence[Record], b: Sequence[Record], ks: Sequence[int] = ()) -> Comparison:
    """Compare two evaluations by the problems they have in common.

    Args:
        a, b: their records; failures are left out.
        ks: further k to compare pass@k for.

    Raises:
        DataError: no problem in common, or one problem with two different gold answers.
    """
    rows_a, rows_b = _answered(a), _answered(b)
    common = [problem for problem in rows_a if problem in rows_b]
    if not common:
        raise DataError("the two evaluations have no answered problem in common")
    _check_gold(rows_a, rows_b, common)
    right_a, drawn_a = _counts(rows_a, common)
    right_b, drawn_b = _counts(rows_b, common)
    differences = right_b / drawn_b - right_a / drawn_a
    variances = rate_variances(right_a, drawn_a) + rate_variances(right_b, drawn_b)
    fractions = [
        Fraction(int(cb), int(nb)) - Fraction(int(ca), int(na))
        for ca, na, cb, nb in zip(right_a, drawn_a, right_b, drawn_b, strict=True)
    ]
    p_value, test = sign_flip_test(fractions)
    mean = float(differences.mean())
    return Comparison(
        problems=len(common),
        only_a=tuple(problem for problem in rows_a if problem not in rows_b),
        only_b=tuple(problem for problem in rows_b if problem not in rows_a),
        mean_a=float((right_a / drawn_a).mean()),
        mean_b=float((right_b / drawn_b).mean()),
        difference=mean,
        new_problems=paired_interval(differences),
        same_problems=same_problems_difference(mean, variances),
        p_value=p_value,
        test=test,
        better=sum(value > 0 for value in fractions),
        worse=sum(value < 0 for value in fractions),
        equal=sum(value == 0 for value in fractions),
        pass_differences=_passes(right_a, drawn_a, right_b, drawn_b, ks),
        changes=_changes(common, right_a, drawn_a, right_b, drawn_b),
        excluded={"a": Excluded.of(a), "b": Excluded.of(b)},
        scores=_scores(rows_a, rows_b, common),
    )


def _scores(
    rows_a: dict[str, list[Record]], rows_b: dict[str, list[Record]], common: list[str]
) -> tuple[float, float, float, Interval] | None:
    """Means and difference of the scores, where there is partial credit."""
    a, b = (
        np.array([np.mean([(r.score or 0.0, r.right) for r in rows[problem]], axis=0) for problem in common])
        for rows in (rows_a, rows_b)
    )
    if np.allclose(a[:, 0], a[:, 1]) and np.allclose(b[:, 0], b[:, 1]):
        return None
    differences = b[:, 0] - a[:, 0]
    return (
        float(a[:, 0].mean()),
        float(b[:, 0].mean()),
        float(differences.mean()),
        paired_interval(differences),
    )


def _answered(records: Sequence[Record]) -> dict[str, list[Record]]:
    return by_problem(record for record in records if not record.failed)


def _check_gold(rows_a: dict[str, list[Record]], rows_b: dict[str, list[Record]], common: list[str]) -> None:
    for problem in common:
        one, other = rows_a[problem][0].gold, rows_b[problem][0].gold
        if one != other:
            raise DataError(
                f"problem {problem!r} has the answer {one!r} in one evaluation and {other!r} in the other: "
                "they are not of the same data"
            )


def _counts(rows: dict[str, list[Record]], problems: list[str]):
    right = np.array([sum(record.right for record in rows[problem]) for problem in problems])
    return right, np.array([len(rows[problem]) for problem in problems])


def _passes(right_a, drawn_a, right_b, drawn_b, ks: Sequence[int]) -> dict[int, tuple[float, Interval]]:
    found: dict[int, tuple[float, Interval]] = {}
    for k in ks:
        if 1 < k <= min(int(drawn_a.min()), int(drawn_b.min())):
            values = pass_at_k(right_b, drawn_b, k) - pass_at_k(right_a, drawn_a, k)
            found[k] = (float(values.mean()), paired_interval(values))
    return found


def sign_flip_test(differences: Sequence[Fraction]) -> tuple[float, str]:
    """Two-sided chance of a sum of differences at least this large when every sign is a fair coin.

    Exact for both estimands' null hypotheses: no difference on any problem (with as many answers in A as
    in B), and differences symmetric about 0 in the population. The distribution of the sum is computed on
    the common denominator of all differences; with one answer each it is the sign test of McNemar.

    Returns:
        The p-value and how it was made: `exact`, or `monte-carlo` where the table would be too large.
    """
    moved = [abs(value) for value in differences if value]
    if not moved:
        return 1.0, "exact"
    unit = math.lcm(*(value.denominator for value in moved))
    steps = [int(value * unit) for value in moved]
    observed = abs(int(sum(differences, Fraction(0)) * unit))
    total = sum(steps)
    if total <= EXACT_STATES // 8 and total * len(steps) <= 64 * EXACT_STATES:
        return _exact(steps, observed, total), "exact"
    return _drawn(np.array([float(value) for value in moved]), abs(float(sum(differences)))), "monte-carlo"


def _exact(steps: list[int], observed: int, total: int) -> float:
    """P(|sum| >= observed): the sum is 2 x (sum of the positive ones) - total."""
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    reach = 0
    for step in steps:
        shifted = np.zeros(reach + step + 1)
        shifted[: reach + 1] = chances[: reach + 1]
        shifted[step:] += chances[: reach + 1]
        reach += step
        chances[: reach + 1] = shifted / 2.0
    sums = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, chances[sums >= observed].sum()))


def _drawn(steps: np.ndarray, observed: float) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(FLIPS // 1000):
        signs = rng.integers(0, 2, size=(1000, len(steps))) * 2 - 1
        hits += int((np.abs(signs @ steps) >= observed - 1e-9).sum())
    return (hits + 1) / (FLIPS + 1)


def _changes(problems: list[str], right_a, drawn_a, right_b, drawn_b) -> tuple[ProblemChange, ...]:
    values = [
        fisher_exact(int(ca), int(na), int(cb), int(nb))
        for ca, na, cb, nb in zip(right_a, drawn_a, right_b, drawn_b, strict=True)
    ]
    flagged = false_discovery(values, 0.1)
    changes = [
        ProblemChange(
            problem=problem,
            right_a=int(right_a[i]),
            drawn_a=int(drawn_a[i]),
            right_b=int(right_b[i]),
            drawn_b=int(drawn_b[i]),
            p_value=values[i],
            flagged=flagged[i],
        )
        for i, problem in enumerate(problems)
    ]
    return tuple(sorted(changes, key=lambda c: (-abs(c.difference), c.problem)))


def fisher_exact(right_a: int, drawn_a: int, right_b: int, drawn_b: int) -> float:
    """Two-sided p-value of Fisher's exact test: outcomes no likelier than the observed one."""
    right, drawn = right_a + right_b, drawn_a + drawn_b
    total = math.comb(drawn, right)
    ways = {
        c: math.comb(drawn_a, c) * math.comb(drawn_b, right - c)
        for c in range(max(0, right - drawn_b), min(drawn_a, right) + 1)
    }
    return min(1.0, sum(count for count in ways.values() if count <= ways[right_a]) / total)


def false_discovery(p_values: Sequence[float], rate: float) -> list[bool]:
    """Which are discoveries by Benjamini and Hochberg (1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    last = 0
    for rank, index in enumerate(order, 1):
        if p_values[index] <= rate * rank / len(p_values):
            last = rank
    chosen = set(order[:last])
    return [index in chosen for index in range(len(p_values))]
