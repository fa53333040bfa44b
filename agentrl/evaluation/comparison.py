"""Two evaluations of the same problems: difference, intervals, an exact test, and which problems changed.

Everything is paired by problem. Definitions: `docs/evaluation.md`. Knows nothing of files and policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from agentrl.errors import DataError
from agentrl.evaluation.results import Record, by_problem
from agentrl.evaluation.statistics.estimators import pass_at_k
from agentrl.evaluation.statistics.exact_tests import false_discovery, fisher_exact, sign_flip_test
from agentrl.evaluation.statistics.intervals import (
    Interval,
    paired_interval,
    rate_variances,
    same_problems_difference,
)
from agentrl_envs.graders import UNDECIDED


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
