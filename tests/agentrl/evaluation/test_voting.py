import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.evaluation.statistics.voting import Ballot, classes, maj_at_k, maj_bootstrap, majority_variance


def brute_force(ballot: Ballot, k: int) -> float:
    votes = [index for index, size in enumerate(ballot.sizes) for _ in range(size)]
    votes += [None] * ballot.abstentions
    outcomes = []
    for subset in itertools.combinations(votes, k):
        counts = Counter(vote for vote in subset if vote is not None)
        best = max(counts.values(), default=0)
        winners = [vote for vote, count in counts.items() if count == best]
        outcomes.append(sum(ballot.correctness[w] for w in winners) / len(winners) if winners else 0.0)
    return sum(outcomes) / len(outcomes)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.0, 1.0, 0.5])), max_size=4).filter(
        lambda classes_: sum(size for size, _ in classes_) <= 9
    ),
    st.integers(0, 3),
    st.data(),
)
def test_maj_at_k_equals_enumeration_of_all_subsets(kinds, abstentions, data):
    ballot = Ballot(tuple(s for s, _ in kinds), tuple(v for _, v in kinds), abstentions)
    if ballot.drawn == 0:
        return
    k = data.draw(st.integers(1, ballot.drawn))
    # fails when a tie is given to the first class instead of shared
    assert maj_at_k(ballot, k) == pytest.approx(brute_force(ballot, k), abs=1e-12)


def test_maj_at_k_by_hand():
    # votes: right 2, wrong 2: a tie of all four is worth one half
    assert maj_at_k(Ballot((2, 2), (1.0, 0.0)), 4) == 0.5
    # right 2, wrong 1, k = 2: {r r} 1, {r w} twice 1/2 each -> (1 + 0.5 + 0.5) / 3
    assert maj_at_k(Ballot((2, 1), (1.0, 0.0)), 2) == pytest.approx(2 / 3)
    # abstentions do not vote: one right answer among three abstentions still wins
    assert maj_at_k(Ballot((1,), (1.0,), 3), 4) == 1.0
    # nobody votes: wrong
    assert maj_at_k(Ballot((), (), 3), 2) == 0.0
    # k = 1 is avg@1
    assert maj_at_k(Ballot((3, 1), (1.0, 0.0), 4), 1) == pytest.approx(3 / 8)


def test_maj_at_32_of_many_classes_is_quick_and_exact():
    ballot = Ballot((1,) * 20 + (5, 7), (0.0,) * 20 + (0.0, 1.0))
    assert maj_at_k(ballot, 32) == 1.0


def test_k_must_fit():
    with pytest.raises(ValueError, match="between 1 and the 2 answers"):
        maj_at_k(Ballot((2,), (1.0,)), 3)


def test_ballot_from_votes():
    ballot = Ballot.count([0, 1, None, 0], [True, False, False, True])
    assert ballot == Ballot((2, 1), (1.0, 0.0), 1)
    # a class the grader judged in two ways counts with its share of right answers
    assert Ballot.count([0, 0], [True, False]).correctness == (0.5,)


def test_bootstrap_of_verl():
    # one class: always its verdict; the empty prediction is a voter and can win
    assert maj_bootstrap(["7", "7"], [True, True], 2) == 1.0
    assert maj_bootstrap([None, None, None, "7"], [False, False, False, True], 4) < 0.2
    assert maj_at_k(Ballot((1,), (1.0,), 3), 4) == 1.0
    # half and half with k = 1 is the mean, up to the noise of 1000 draws
    assert maj_bootstrap(["7", "8"], [True, False], 1) == pytest.approx(0.5, abs=0.06)
    # repeatable: the seed is fixed
    votes, right = ["1", "2", "2", None], [True, False, False, False]
    assert maj_bootstrap(votes, right, 4) == maj_bootstrap(votes, right, 4)


def test_bootstrap_of_verl_agrees_with_enumeration_of_resamples():
    votes, right, k = ["1", "2", "1"], [True, False, True], 3
    outcomes = []
    for picks in itertools.product(range(3), repeat=k):
        counts = Counter(votes[i] for i in picks)  # in order of first appearance: most_common breaks ties so
        winner = counts.most_common(1)[0][0]
        outcomes.append(right[next(i for i in picks if votes[i] == winner)])
    expected = sum(outcomes) / len(outcomes)
    assert maj_bootstrap(votes, right, k, resamples=20_000) == pytest.approx(expected, abs=0.01)


def test_variance_of_a_majority():
    assert majority_variance(Ballot((8,), (1.0,))) == 0.0
    assert majority_variance(Ballot((8,), (0.0,))) == 0.0
    # a strong prior fixes the rate at 1/2; 1 against 1: right twice 1/4, a tie 1/2, never 1/4 -> 1/8
    assert majority_variance(Ballot((1, 1), (1.0, 0.0)), (1e6, 1e6), draws=400) == pytest.approx(
        1 / 8, abs=0.006
    )
    # an abstention in place of the wrong answer: wrong only when nobody votes, 1/4 -> 3/16
    assert majority_variance(Ballot((1,), (1.0,), 1), (1e6, 1e6), draws=400) == pytest.approx(
        3 / 16, abs=0.006
    )


def test_the_prior_keeps_a_unanimous_problem_from_certainty():
    assert 0.0 < majority_variance(Ballot((2,), (1.0,)), (0.1, 0.1)) < 0.05
    assert 0.0 < majority_variance(Ballot((2,), (0.0,)), (0.1, 0.1)) < 0.05
    # with many answers a stray one changes no majority
    assert majority_variance(Ballot((32,), (1.0,)), (0.1, 0.1)) < 1e-3


async def test_classes_use_keys_first_and_the_grader_for_the_rest():
    asked: list[tuple[str, str]] = []

    async def equivalent(left: str, right: str) -> bool:
        asked.append((left, right))
        return {left, right} == {"1/2", "2^{-1}"}

    def key(text: str) -> object:
        return 0.5 if text in ("1/2", "0.5") else text

    found = await classes(["1/2", "0.5", None, "2^{-1}", "x"], key, equivalent)
    assert found == [0, 0, None, 0, 2]
    assert ("0.5", "1/2") not in asked


async def test_classes_take_either_direction_of_an_asymmetric_grader():
    async def equivalent(left: str, right: str) -> bool:
        return (left, right) == ("a", "b")

    assert await classes(["a", "b"], key=str, equivalent=equivalent) == [0, 0]
