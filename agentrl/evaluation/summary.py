"""From the records of an evaluation to its table: every estimate with its intervals, and what went wrong.

A pure function of the records in a fixed order, so a resumed evaluation has the table of one that was never
killed. Definitions: `docs/evaluation.md`. Knows nothing of policies, environments or files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentrl.evaluation.results import Record, by_problem
from agentrl.evaluation.scoring import judge_table
from agentrl.evaluation.statistics import estimators
from agentrl.evaluation.statistics.estimators import IntArray
from agentrl.evaluation.statistics.intervals import (
    Estimand,
    FloatArray,
    Interval,
    new_problems_interval,
    pass_variances,
    rate_prior,
    rate_variances,
    same_problems_interval,
)
from agentrl.evaluation.statistics.voting import Ballot, classes, maj_at_k, maj_bootstrap, majority_variance
from agentrl_envs.graders import UNDECIDED

Labels = Mapping[str, Mapping[str, str]]
"""Column -> problem -> its value there."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """How answers fall into classes for maj@k."""

    key: Callable[[str], Hashable] = str.strip
    equivalent: Callable[[str, str], Awaitable[bool]] | None = None
    name: str = "text"


def _estimate(value: float, new: Interval, same: Interval | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": value, Estimand.NEW_PROBLEMS.value: _bounds(new)}
    if same is not None:
        entry[Estimand.SAME_PROBLEMS.value] = _bounds(same)
    return entry


def _bounds(interval: Interval) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "method": interval.method}


@dataclass(frozen=True, slots=True)
class _Counts:
    """Right answers and answers per problem, [N] each; and what they would be with the missing ones."""

    right: IntArray
    drawn: IntArray
    worst: IntArray
    """Right ones if every missing answer were wrong."""
    best: IntArray
    """If every one were right."""
    asked: IntArray
    """Answers and missing ones together: what `worst` and `best` are out of."""

    @classmethod
    def of(cls, problems: Iterable[Sequence[Record]]) -> _Counts:
        """Count. Missing is what failed, and what was played with another seed because its own failed."""
        rows = [
            (
                sum(r.right for r in records),
                sum(not r.failed for r in records),
                sum(r.right and not r.resampled for r in records),
                sum(r.right or r.resampled or r.failed for r in records),
                len(records),
            )
            for records in problems
        ]
        return cls(*np.array(rows, dtype=np.int64).reshape(-1, 5).T)

    def where(self, kept: Any) -> _Counts:
        """Those problems alone."""
        columns = (self.right, self.drawn, self.worst, self.best, self.asked)
        return _Counts(*(column[kept] for column in columns))

    def estimate(
        self, values: Callable[[IntArray, IntArray], FloatArray], interval: Callable[..., Interval]
    ) -> Interval:
        """The interval; where answers are missing, between them all wrong and all right."""
        found = interval(values(self.right, self.drawn), self.right, self.drawn)
        if (self.worst == self.best).all() and (self.asked == self.drawn).all():
            return found
        low = interval(values(self.worst, self.asked), self.worst, self.asked)
        high = interval(values(self.best, self.asked), self.best, self.asked)
        return replace(found, low=min(low.low, found.low), high=max(high.high, found.high))


async def summarise(
    records: Sequence[Record], equivalence: Equivalence | None = None, labels: Labels | None = None
) -> dict[str, Any]:
    """The table of an evaluation.

    Args:
        records: in the order of the data; failures are counted apart and are no answers.
        equivalence: of answers, for maj@k; None leaves maj@k out.
        labels: columns by whose values accuracy is broken down.
    """
    problems = by_problem(records)
    answered = {p: [r for r in rows if not r.failed] for p, rows in problems.items()}
    answered = {problem: rows for problem, rows in answered.items() if rows}
    sizes = Counter(len(answered.get(problem, ())) for problem in problems)
    table: dict[str, Any] = {
        "problems": len(problems),
        "problems_without_answers": len(problems) - len(answered),
        "answers_per_problem": {str(size): sizes[size] for size in sorted(sizes, reverse=True)},
        "episodes": len(records),
        "counts": _counts(records),
    }
    if not answered:
        return table
    counts = _Counts.of(problems.values())
    table |= _averages(answered, counts)
    table["pass@k"] = _passes(counts)
    if equivalence is not None:
        table["maj@k"] = await _majorities(answered, equivalence)
        table["votes"] = equivalence.name
        table["verl_bootstrap"] = _bootstraps(answered)
    if labels:
        table["by"] = {column: _by_value(problems, values) for column, values in labels.items()}
    if (judged := judge_table(records)) is not None:
        table["judge"] = judged
    table["calibration"] = _calibration(answered)
    table["tools"] = _tools(records)
    return table


def _counts(records: Sequence[Record]) -> dict[str, Any]:
    kept = [record for record in records if not record.failed]
    verdicts = Counter(record.verdict or "none" for record in kept)
    return {
        "answered": len(kept),
        "right": sum(record.right for record in kept),
        "no_vote": sum(record.stated is None for record in kept),
        "truncated": sum(record.truncated for record in kept),
        "undecided": {verdict: verdicts[verdict] for verdict in sorted(UNDECIDED) if verdicts[verdict]},
        "fenced": sum(record.fenced for record in kept),
        "stop_reasons": dict(sorted(Counter(record.stop_reason for record in kept).items())),
        "verdicts": dict(sorted(verdicts.items())),
        "failed": sum(record.failed for record in records),
        "failures": dict(
            sorted(Counter(f"{r.failure[0]}: {r.failure[1]}" for r in records if r.failure).items())
        ),
        "refused": sum(record.refused for record in records),
        "played_again": sum(record.attempts > 1 for record in records),
        "resampled": sum(record.resampled for record in records),
    }


def _average(counts: _Counts) -> dict[str, Any]:
    """avg@k: over the problems with answers; its intervals are over all problems."""
    kept = counts.drawn > 0

    def values(right: IntArray, drawn: IntArray) -> FloatArray:
        return estimators.avg_at_k(right[drawn > 0], drawn[drawn > 0])

    def new(values: FloatArray, right: IntArray, drawn: IntArray) -> Interval:
        return new_problems_interval(values)

    def same(values: FloatArray, right: IntArray, drawn: IntArray) -> Interval:
        right, drawn = right[drawn > 0], drawn[drawn > 0]
        return same_problems_interval(
            float(values.mean()), rate_variances(right, drawn), trials=int(drawn.sum())
        )

    mean = float(estimators.avg_at_k(counts.right[kept], counts.drawn[kept]).mean())
    return _estimate(mean, counts.estimate(values, new), counts.estimate(values, same))


def _averages(answered: Mapping[str, list[Record]], counts: _Counts) -> dict[str, Any]:
    """avg@k of right answers, of scores where they differ, by the strict rule and by a lenient one."""
    found: dict[str, Any] = {
        "k": int(counts.drawn.max()),
        "k_least": int(counts.drawn[counts.drawn > 0].min()),
        "avg@k": _average(counts),
    }
    scores = _means(answered.values(), lambda record: record.score or 0.0)
    right = _means(answered.values(), lambda record: float(record.right))
    if not np.allclose(scores, right):
        found["score"] = _estimate(float(scores.mean()), new_problems_interval(scores), None)
    for name, rule in (("avg@k_strict", "strict"), ("avg@k_lenient", "lenient")):
        if all(getattr(record, rule) is not None for rows in answered.values() for record in rows):
            values = _means(answered.values(), lambda record, rule=rule: float(bool(getattr(record, rule))))
            found[name] = _estimate(float(values.mean()), new_problems_interval(values), None)
    return found


def _by_value(problems: Mapping[str, list[Record]], values: Mapping[str, str]) -> dict[str, Any]:
    """avg@k of the problems of each value of a column, in the order of the values."""
    found: dict[str, Any] = {}
    for value in sorted({values.get(problem, "") for problem in problems}, key=_natural):
        rows = [records for problem, records in problems.items() if values.get(problem, "") == value]
        counts = _Counts.of(rows)
        if counts.drawn.any():
            found[value] = {"problems": len(rows), "avg@k": _average(counts)}
    return found


def _natural(text: str) -> tuple[Any, ...]:
    """Level 9 before level 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text))


def _means(problems: Iterable[list[Record]], value: Callable[[Record], float]) -> FloatArray:
    """[N] mean of a value over the answers of each problem."""
    return np.array([sum(value(record) for record in rows) / len(rows) for rows in problems], dtype=float)


def _ks(drawn: IntArray) -> list[int]:
    """Every k that at least half of the problems have answers for."""
    return [k for k in range(1, int(drawn.max()) + 1) if 2 * int((drawn >= k).sum()) >= len(drawn)]


def _passes(counts: _Counts) -> dict[str, Any]:
    """pass@k over the problems that have k answers; their number is told where it is not all."""
    found: dict[str, Any] = {}
    for k in _ks(counts.drawn[counts.drawn > 0]):
        enough = counts.drawn >= k

        def values(right: IntArray, drawn: IntArray, k: int = k) -> FloatArray:
            return estimators.pass_at_k(right[drawn >= k], drawn[drawn >= k], k)

        def new(values: FloatArray, right: IntArray, drawn: IntArray) -> Interval:
            return new_problems_interval(values)

        def same(values: FloatArray, right: IntArray, drawn: IntArray, k: int = k) -> Interval:
            right, drawn = right[drawn >= k], drawn[drawn >= k]
            return same_problems_interval(float(values.mean()), pass_variances(right, drawn, k))

        mean = float(estimators.pass_at_k(counts.right[enough], counts.drawn[enough], k).mean())
        entry = _estimate(mean, counts.estimate(values, new), counts.estimate(values, same))
        found[str(k)] = entry | _of_problems(enough, counts.drawn)
    return found


def _of_problems(enough: Any, drawn: IntArray) -> dict[str, int]:
    return {} if enough.all() else {"problems": int(enough.sum()), "of_problems": len(drawn)}


async def _majorities(answered: Mapping[str, list[Record]], equivalence: Equivalence) -> dict[str, Any]:
    """maj@k over the problems that have k answers.

    Over the same problems only where k is all answers, where a new draw has the same votes.
    """
    ballots: list[Ballot] = []
    for rows in answered.values():
        votes = await classes([r.stated for r in rows], equivalence.key, equivalence.equivalent)
        ballots.append(Ballot.count(votes, [r.right for r in rows]))
    counts = _Counts.of(answered.values())
    a, b = rate_prior(counts.right, counts.drawn)
    found: dict[str, Any] = {}
    shown = _ks(counts.drawn)
    for k in estimators.ks_up_to(shown[-1]):
        kept = [ballot for ballot in ballots if ballot.drawn >= k]
        values = np.array([maj_at_k(ballot, k) for ballot in kept])
        mean = float(values.mean())
        same = None
        if all(ballot.drawn == k for ballot in kept):
            variances = [majority_variance(ballot, (float(a[0]), float(b[0]))) for ballot in kept]
            same = same_problems_interval(mean, variances)
        entry = _estimate(mean, new_problems_interval(values), same)
        found[str(k)] = entry | _of_problems(counts.drawn >= k, counts.drawn)
    return found


def _bootstraps(answered: Mapping[str, list[Record]]) -> dict[str, Any]:
    """verl's `maj@k/mean` and `best@k/mean`, for comparison with papers."""
    majority: dict[str, float] = {}
    best: dict[str, float] = {}
    counts = _Counts.of(answered.values())
    for k in estimators.ks_up_to(_ks(counts.drawn)[-1]):
        rows = [records for records in answered.values() if len(records) >= k]
        outcomes = [maj_bootstrap([r.stated for r in one], [r.right for r in one], k) for one in rows]
        kept = counts.where(counts.drawn >= k)
        majority[str(k)] = float(np.mean(outcomes))
        best[str(k)] = float(estimators.best_at_k_bootstrap(kept.right, kept.drawn, k).mean())
    return {"maj@k": majority, "best@k": best}


def _calibration(answered: Mapping[str, list[Record]]) -> dict[str, Any] | None:
    """AUC of the mean log-probability against correctness; its interval resamples problems."""
    rows = [r for records in answered.values() for r in records if r.confidence is not None]
    if not rows:
        return None
    confidence = [r.confidence for r in rows if r.confidence is not None]
    right = [r.right for r in rows]
    area = estimators.area_under_curve(confidence, right)
    if area is None:
        return None
    low, high = _area_interval([r.problem for r in rows], confidence, right)
    return {
        "auc": area,
        "auc_low": low,
        "auc_high": high,
        "auc_within_problems": estimators.within_problem_area([r.problem for r in rows], confidence, right),
        "answers": len(rows),
    }


def _area_interval(
    problems: Sequence[str], confidence: Sequence[float], right: Sequence[bool], resamples: int = 1000
) -> tuple[float, float]:
    """Percentile interval of the AUC over resampled problems, with all their answers."""
    names = {name: index for index, name in enumerate(dict.fromkeys(problems))}
    rows = np.array([names[name] for name in problems])
    scores, labels = np.asarray(confidence), np.asarray(right)
    order = np.argsort(scores, kind="stable")
    rows, labels, scores = rows[order], labels[order], scores[order]
    _, level = np.unique(scores, return_inverse=True)
    rng = np.random.default_rng(0)
    areas: list[float] = []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[rows]
        good = np.bincount(level, weights=weight * labels)
        bad = np.bincount(level, weights=weight * ~labels)
        if good.sum() and bad.sum():
            below = np.cumsum(bad) - bad / 2.0
            areas.append(float((good * below).sum() / (good.sum() * bad.sum())))
    if not areas:
        return 0.0, 1.0
    return float(np.quantile(areas, 0.025)), float(np.quantile(areas, 0.975))


def _tools(records: Sequence[Record]) -> dict[str, Any]:
    kept = [record for record in records if not record.failed]
    calls, errors = sum(r.tool_calls for r in kept), sum(r.tool_errors for r in kept)
    right = sum(r.right for r in kept)
    count = max(1, len(kept))
    return {
        "calls_per_episode": calls / count,
        "calls_per_right_answer": calls / right if right else None,
        "episodes_with_calls": sum(r.tool_calls > 0 for r in kept) / count,
        "error_share": errors / calls if calls else None,
        "turns_per_episode": sum(r.turns for r in kept) / count,
    }


def effort(records: Sequence[Record]) -> dict[str, Any]:
    """Tokens, seconds and cost: what differs between two runs of the same evaluation."""
    sampled = np.array([r.sampled_tokens for r in records] or [0])
    seconds = np.array([r.seconds for r in records] or [0.0])
    return {
        "sampled_tokens": int(sampled.sum()),
        "sampled_tokens_mean": float(sampled.mean()),
        "sampled_tokens_p90": float(np.quantile(sampled, 0.9)),
        "prompt_tokens": int(sum(r.prompt_tokens for r in records)),
        "episode_seconds": float(seconds.sum()),
        "episode_seconds_p50": float(np.quantile(seconds, 0.5)),
        "episode_seconds_p90": float(np.quantile(seconds, 0.9)),
        "tool_seconds": float(sum(r.tool_seconds for r in records)),
        "cost": float(sum(r.cost for r in records)),
    }
