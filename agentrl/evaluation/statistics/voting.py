r"""maj@k: is the answer that most of k answers agree on the right one?

Exact over equivalence classes. n answers to a problem fall into classes of equal value, and abstentions
(no answer could be read; infrastructure failures are not among the n at all). maj@k is the mean, over all
subsets of k of the n answers, of the correctness of the class with the most votes; tied classes share the
outcome equally, and a subset of abstentions only counts as wrong. Definitions: `docs/evaluation.md`. Knows
nothing of how answers are compared: `classes` takes that as a function.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes on one problem."""

    sizes: tuple[int, ...]
    """Answers of each class."""
    correctness: tuple[float, ...]
    """Share of right answers in each class: 0 or 1 when grader and classes agree."""
    abstentions: int = 0
    """Answers that name no value."""

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.correctness):
            raise ValueError("every class needs a size and a correctness")
        if any(size < 1 for size in self.sizes) or self.abstentions < 0:
            raise ValueError("a class has at least one answer, and abstentions are at least 0")

    @property
    def drawn(self) -> int:
        """Answers, abstentions included."""
        return sum(self.sizes) + self.abstentions

    @classmethod
    def count(cls, votes: Sequence[Hashable | None], right: Sequence[bool]) -> Ballot:
        """From one class (None: abstains) and one verdict per answer."""
        sizes: Counter[Hashable] = Counter(vote for vote in votes if vote is not None)
        hits: Counter[Hashable] = Counter(
            v for v, ok in zip(votes, right, strict=True) if v is not None and ok
        )
        return cls(
            sizes=tuple(sizes.values()),
            correctness=tuple(hits[vote] / size for vote, size in sizes.items()),
            abstentions=len(votes) - sum(sizes.values()),
        )


def maj_at_k(ballot: Ballot, k: int) -> float:
    """Mean correctness of the winning class over all k-subsets of the answers, without replacement, exact.

    The winner with m votes and t others tied with it: C(n_j, m) ways for itself, and for the others the
    coefficient of z^(k - m) u^t in the product of (sum over c < m of C(n_i, c) z^c + u C(n_i, m) z^m), with
    (1 + z)^abstentions; 1 / (t + 1) of it is the class's share.
    """
    if not 1 <= k <= ballot.drawn:
        raise ValueError(f"k must lie between 1 and the {ballot.drawn} answers, got {k}")
    result = 0.0
    total = math.comb(ballot.drawn, k)  # Python integers: nothing overflows, nothing cancels
    for most in range(1, min(k, max(ballot.sizes, default=0)) + 1):
        contested = [i for i, size in enumerate(ballot.sizes) if size >= most and ballot.correctness[i] > 0]
        shares: dict[int, float] = {}  # classes of one size have the same chance to win
        for index in contested:
            size = ballot.sizes[index]
            if size not in shares:
                shares[size] = _share_of_win(ballot, index, most, k, total)
            result += ballot.correctness[index] * shares[size]
    return min(1.0, result)


def _share_of_win(ballot: Ballot, winner: int, most: int, k: int, total: int) -> float:
    """Expected share of the win of one class with exactly `most` votes."""
    left = k - most
    # ways[t][v]: ways for the other classes to cast v votes with t of them at `most` and none above.
    ways = [[math.comb(ballot.abstentions, votes) for votes in range(left + 1)]]
    others = Counter(size for index, size in enumerate(ballot.sizes) if index != winner)
    for size, count in others.items():
        for _ in range(count):
            ways = _with_class(ways, size, most, left)
    own = math.comb(ballot.sizes[winner], most)
    return sum(own * row[left] / (total * (tied + 1)) for tied, row in enumerate(ways) if row[left])


def _with_class(ways: list[list[int]], size: int, most: int, left: int) -> list[list[int]]:
    grown = [[0] * (left + 1) for _ in range(len(ways) + 1)]
    for tied, row in enumerate(ways):
        for votes, count in enumerate(row):
            if not count:
                continue
            for cast in range(min(size, most - 1, left - votes) + 1):
                grown[tied][votes + cast] += count * math.comb(size, cast)
            if size >= most and votes + most <= left:
                grown[tied + 1][votes + most] += count * math.comb(size, most)
    while len(grown) > 1 and not any(grown[-1]):
        grown.pop()
    return grown


def maj_bootstrap(
    votes: Sequence[str | None], right: Sequence[bool], k: int, *, resamples: int = 1000, seed: int = 42
) -> float:
    """verl's `maj@k/mean` of one problem, for comparison with papers whose numbers come from it.

    k answers drawn with replacement, 1000 times from seed 42; votes are strings without equivalence, an
    answer that could not be read is a vote for the empty string, a tie goes to the string seen first, and
    the outcome is the verdict of the winner's first answer in the draw.
    """
    texts = ["" if vote is None else vote for vote in votes]
    names = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    keys = np.array([names[text] for text in texts])
    verdicts = np.asarray(right, float)
    rng = np.random.default_rng(seed)
    outcomes = np.empty(resamples)
    for row, picks in enumerate(rng.integers(0, len(texts), size=(resamples, k))):
        drawn = keys[picks]
        counts = np.bincount(drawn, minlength=len(names))[drawn]
        outcomes[row] = verdicts[picks[int(np.argmax(counts))]]
    return float(outcomes.mean())


def majority_variance(
    ballot: Ballot,
    prior: tuple[float, float] = (0.0, 0.0),
    *,
    rates: int = 40,
    draws: int = 40,
    seed: int = 0,
) -> float:
    """Expected variance of maj@n of this problem under n new answers.

    Rates of right answers are drawn from their beta posterior, for each of them n new answers, and the
    variance given the rate is averaged. Right and wrong answers fall into classes as the ones at hand do;
    where none was wrong, new wrong ones agree with each other.

    Args:
        ballot: the votes.
        prior: (a, b) of `intervals.rate_prior`, so that a problem whose answers all agree is not taken as
            certain to stay so.
        rates, draws: of the posterior, and of n answers for each.
        seed: of both.
    """
    right = [i for i, value in enumerate(ballot.correctness) if value > 0.5]
    wrong = [i for i, value in enumerate(ballot.correctness) if value <= 0.5]
    hits = sum(ballot.sizes[i] for i in right)
    misses = ballot.drawn - hits
    a, b = prior[0] + hits, prior[1] + misses
    if a <= 0.0 or b <= 0.0:
        return 0.0
    good = np.array([ballot.sizes[i] for i in right] or [1.0], float)
    bad = np.array([*(ballot.sizes[i] for i in wrong), ballot.abstentions] if misses else [1.0, 0.0], float)
    rng = np.random.default_rng(seed)
    rate = rng.beta(a, b, size=(rates, 1))
    shares = np.hstack([rate * good / good.sum(), (1.0 - rate) * bad / bad.sum()])
    counts = rng.multinomial(ballot.drawn, shares, size=(draws, rates))[..., :-1]  # without abstentions
    values = [*([ballot.correctness[i] for i in right] or [1.0])]
    values += [ballot.correctness[i] for i in wrong] if misses else [0.0]
    most = counts.max(axis=-1, keepdims=True)
    winners = (counts == most) & (most > 0)
    outcomes = winners @ np.array(values) / np.maximum(winners.sum(axis=-1), 1)
    return float(outcomes.var(axis=0, ddof=1).mean())


async def classes(
    answers: Sequence[str | None],
    key: Callable[[str], Hashable],
    equivalent: Callable[[str, str], Awaitable[bool]] | None = None,
) -> list[int | None]:
    """The class of each answer, numbered in order of first appearance; None abstains.

    Args:
        answers: what each answer names, None when nothing.
        key: canonical form; equal keys are one class without further questions.
        equivalent: decides two different keys; None trusts the keys. Classes are merged when it holds in
            either direction, because symbolic graders are not symmetric.
    """
    first: dict[Hashable, int] = {}
    texts: list[str] = []
    parent: list[int] = []
    result: list[int | None] = []
    for answer in answers:
        if answer is None:
            result.append(None)
            continue
        name = key(answer)
        if name not in first:
            first[name] = len(texts)
            parent.append(await _class_of(answer, texts, parent, equivalent))
            texts.append(answer)
        result.append(parent[first[name]])
    return result


async def _class_of(
    answer: str,
    texts: list[str],
    parent: list[int],
    equivalent: Callable[[str, str], Awaitable[bool]] | None,
) -> int:
    """Class of a new key: that of the first representative it equals, else its own."""
    if equivalent is not None:
        for index, text in enumerate(texts):
            if parent[index] == index and (await equivalent(answer, text) or await equivalent(text, answer)):
                return index
    return len(texts)
