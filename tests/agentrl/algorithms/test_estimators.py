"""Estimators beside SPO's and GRPO's: four rows worked by hand, and what each promises."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.advantage import CreditBatch
from agentrl.algorithms.group_estimators import leave_one_out
from agentrl.algorithms.selection import most_varied
from agentrl.algorithms.turn_credit import returns
from agentrl.algorithms.value_estimators import beta_density
from agentrl.config import registry
from agentrl.episode import Episode, SegmentBuilder, StopReason, ToolCallRecord, Turn
from agentrl.errors import DataError

CALL = ToolCallRecord("python", {}, "1", "ok", 0.1)


def make_episode(turns: tuple[int, ...] = (4,), *, calls: tuple[int, ...] = (), **more: Any) -> Episode:
    """An episode of turns of so many sampled tokens, two given ones before each; some turns call a tool."""
    builder, spans = SegmentBuilder(), []
    for number, tokens in enumerate(turns):
        builder.append_given([1, 1])
        start, end = builder.append_sampled([2] * tokens, [-1.0] * tokens, [0] * tokens)
        spans.append(Turn(0, start, end, "", (CALL,) if number in calls else ()))
    fields: dict[str, Any] = {
        "episode_id": "e",
        "dispatch_index": 0,
        "prompt_id": "p",
        "segments": (builder.build(),),
        "turns": tuple(spans),
        "reward": 1.0,
        "stop_reason": StopReason.ANSWERED,
        "start_version": 0,
        "temperature": 1.0,
    }
    return Episode(**(fields | more))


def run(kind: str, own: dict[str, Any] | None = None, **batch: Any) -> Any:
    arrays = {name: np.asarray(value) for name, value in batch.items() if name != "episodes"}
    return registry.make("estimator", kind, own or {})(
        CreditBatch(**arrays, episodes=batch.get("episodes", ()))
    )


def near(values: Any) -> Any:
    return pytest.approx(values, abs=2e-6)


def test_rloo() -> None:
    # Means of the others: 0, .5, .5; the last is alone in its group.
    result = run("rloo", scores=[1.0, 0.0, 0.0, 1.0], groups=[0, 0, 0, 1])
    assert result.tolist() == near([1.0, -0.5, -0.5, 0.0])
    # Over the batch: mean 0, deviation sqrt(1.5 / 3) = .707107.
    result = run("rloo", {"normalise": "batch"}, scores=[1.0, 0.0, 0.0, 1.0], groups=[0, 0, 0, 1])
    assert result.tolist() == near([1.414214, -0.707107, -0.707107, 0.0])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 1))
def test_no_score_is_in_its_own_rloo_baseline(scores: list[float], other: float) -> None:
    groups = np.zeros(len(scores), dtype=np.int64)
    changed = [other, *scores[1:]]
    moved = leave_one_out(changed, groups)[0] - leave_one_out(scores, groups)[0]
    assert moved == pytest.approx(other - scores[0], abs=1e-9)  # GRPO's moves by (1 - 1 / n) of it
    assert float(leave_one_out(scores, groups).sum()) == pytest.approx(0.0, abs=1e-9)


def test_dgpo() -> None:
    # Mean .25, sum of deviations 1.5: .75 * 4 / 1.5001 and -.25 * 4 / 1.5001. One mixed group: its weight is 1.
    result = run("dgpo", scores=[1.0, 0.0, 0.0, 0.0], groups=[0, 0, 0, 0])
    assert result.tolist() == near([1.999867, -0.666622, -0.666622, -0.666622])


def test_dgpo_weighs_hard_groups() -> None:
    scores = [1.0, 0.0, 0.8, 0.6, 1.0, 1.0]
    result = run("dgpo", scores=scores, groups=[0, 0, 1, 1, 2, 2])
    # Means .5 and .7: 2 / (1 + e^-.1) = 1.049958 and .950042; advantages .99990 and .99950; the third group is not
    # mixed, its third of the tokens goes to the others: times 6 / 4.
    assert result.tolist() == near(
        [
            1.049958 * 0.99990001 * 1.5,
            -1.049958 * 0.99990001 * 1.5,
            0.950042 * 0.99950025 * 1.5,
            -0.950042 * 0.99950025 * 1.5,
            0.0,
            0.0,
        ]
    )
    # A group without a right answer counts as solved, so that false negatives are not chased.
    wrong = run("dgpo", scores=[1.0, 0.0, 0.4, 0.0], groups=[0, 0, 1, 1])
    assert abs(wrong[2]) < abs(wrong[0])
    assert run("dgpo", scores=[1.0, 1.0], groups=[0, 0]).tolist() == [0.0, 0.0]


@given(st.floats(0.1, 0.9))
def test_the_mean_absolute_advantage_of_dgpo_is_one_at_every_value(value: float) -> None:
    win, loss = run(
        "dgpo_value", {"temperature": 0.0, "bound": 50.0}, scores=[1.0, 0.0], baselines=[value, value]
    )
    assert value * win - (1 - value) * loss == pytest.approx(1.0, rel=1e-3)
    assert value * win + (1 - value) * loss == pytest.approx(0.0, abs=1e-9), "and unbiased"


def test_dgpo_with_values() -> None:
    result = run(
        "dgpo_value", {"temperature": 0.0}, scores=[1.0, 0.0, 1.0, 0.0], baselines=[0.5, 0.5, 0.1, 0.1]
    )
    # .5 / .5001, and .9 / .1801 = 4.997224, -.1 / .1801.
    assert result.tolist() == near([0.9998, -0.9998, 4.997224, -0.555247])
    bounded = run("dgpo_value", {"temperature": 0.0, "bound": 3.0}, scores=[1.0], baselines=[0.01])
    assert bounded.tolist() == [3.0]
    # Weights 2 softmax(-v / 2): 2 / (1 + e^-.2) = 1.099668 for v = .1 against .900332 for v = .5.
    weighted = run("dgpo_value", scores=[1.0, 1.0], baselines=[0.5, 0.1])
    assert weighted.tolist() == near([0.9998 * 0.900332, 4.997224 * 1.099668])


PARTS = [{"correct": c, "format": f} for c, f in ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0))]


def test_gdpo() -> None:
    episodes = [make_episode(reward_parts=parts) for parts in PARTS]
    batch: dict[str, Any] = {"scores": [1.0, 0.5, 0.0, 1.0], "groups": [0, 0, 0, 0], "episodes": episodes}
    # correct: mean .5, deviation .577350; format: mean .75, deviation .5. Sums 1.366025, -.366025, -2.366025,
    # 1.366025; their deviation is 1.776148.
    assert run("gdpo", **batch).tolist() == pytest.approx(
        [0.769094, -0.206078, -1.332111, 0.769094], abs=1e-5
    )
    # format alone: [.5, .5, -1.5, .5], deviation 1.
    alone = run("gdpo", {"weights": {"correct": 0.0}}, **batch)
    assert alone.tolist() == pytest.approx([0.5, 0.5, -1.5, 0.5], abs=1e-5)
    with pytest.raises(DataError, match=r"names \['fromat'\]; the parts are \['correct', 'format'\]"):
        run("gdpo", {"weights": {"fromat": 1.0}}, **batch)
    with pytest.raises(DataError, match="have no parts"):
        run("gdpo", None, **(batch | {"episodes": [make_episode()] * 4}))


def test_gdpo_tells_apart_what_a_sum_cannot() -> None:
    # Equal sums by other parts: GRPO of the sum gives both the same.
    parts = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 0.0}]
    episodes = [make_episode(reward_parts=one) for one in parts]
    scores = [0.5, 0.5, 0.5, 0.0]
    groups = [0, 0, 0, 0]
    sums = run("grpo", scores=scores, groups=groups)
    result = run("gdpo", scores=scores, groups=groups, episodes=episodes)
    assert sums[0] == sums[1]
    assert result[0] > result[1] + 0.2


def test_bnpo() -> None:
    values = [0.2, 0.4, 0.6, 0.8]
    # Mean .5, variance .05: a = b = 2, alpha = beta = 5/3. Density 3.40899 (v (1 - v))^(2/3): 1.004711 at .2, 1.316539
    # at .4. Weights .995311 and .759567.
    result = run("bnpo", scores=[1.0, 0.0, 1.0, 0.0], baselines=values)
    assert result.tolist() == pytest.approx([0.796249, -0.303827, 0.303827, -0.796249], abs=1e-5)
    # All values alike: there is no distribution, and nothing is weighted.
    assert run("bnpo", scores=[1.0, 0.0], baselines=[0.3, 0.3]).tolist() == near([0.7, -0.3])


def test_the_density_of_bnpo_is_one_that_adds_up_to_one() -> None:
    grid = (np.arange(20000) + 0.5) / 20000
    for alpha, beta in ((1.0, 1.0), (5 / 3, 5 / 3), (1.2, 4.0)):
        assert float(beta_density(grid, alpha, beta).mean()) == pytest.approx(1.0, abs=1e-4)


def test_bnpo_with_values_is_not_what_its_code_does_for_one_episode() -> None:
    # There a group of one has p = 0, so that every weight is the bound; here the weights are of order 1.
    rng = np.random.default_rng(0)
    values = rng.uniform(0.05, 0.95, 64)
    result = run("bnpo", scores=np.ones(64), baselines=values)
    assert float(np.max(result / (1 - values))) < 10.0


def test_aspo() -> None:
    episodes = [make_episode((10, 90), calls=(0,)), make_episode((30, 70), calls=(0,)), make_episode((100,))]
    episodes.append(make_episode((5, 20), calls=(0,)))
    batch = {"scores": [1.0, 1.0, 1.0, 0.0], "baselines": [0.5] * 4, "episodes": episodes}
    # p = 10 and 30, mean 20, mean length 100: -2 (10 - 20) / 100 = .2. Without a call, or wrong: nothing.
    result = run("aspo", {"normalise": "none"}, **batch)
    assert result.tolist() == near([0.7, 0.3, 0.5, -0.5])
    # delta = -20 asks for +-2 and gets .7 * .5: the sign is kept.
    strong = run("aspo", {"normalise": "none", "delta": -20.0}, **batch)
    assert strong.tolist() == near([0.85, 0.15, 0.5, -0.5])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60), st.floats(0.05, 0.95)), min_size=2, max_size=8))
def test_aspo_keeps_every_sign(rows: list[tuple[bool, int, float]]) -> None:
    batch = {
        "scores": [float(right) for right, _, _ in rows],
        "baselines": [value for _, _, value in rows],
        "episodes": [make_episode((tokens, 5), calls=(0,)) for _, tokens, _ in rows],
    }
    plain, result = run("spo", **batch), run("aspo", {"delta": -50.0}, **batch)
    assert np.sign(result).tolist() == np.sign(plain).tolist()


def test_the_wish_of_aspo_in_the_reward_turns_right_answers_negative() -> None:
    # The trap of the paper: all right, one later than the other; in the reward, half of them end below zero.
    shaped = run("grpo", scores=[1.0, 0.9], groups=[0, 0])
    assert min(shaped) < 0.0
    episodes = [make_episode((10, 5), calls=(0,)), make_episode((50, 5), calls=(0,))]
    result = run("aspo", {"normalise": "none"}, scores=[1.0, 1.0], baselines=[0.6, 0.6], episodes=episodes)
    assert min(result) > 0.0
    assert result[0] > result[1]


def test_tokens_to_the_first_call() -> None:
    assert make_episode((3, 4, 5), calls=(1, 2)).tokens_to_first_call == 7
    assert make_episode((3, 4)).tokens_to_first_call is None


def rewarded(turns: tuple[int, ...], rewards: tuple[float, ...]) -> Episode:
    episode = make_episode(turns)
    given_turns = [replace(turn, reward=reward) for turn, reward in zip(episode.turns, rewards, strict=True)]
    return replace(episode, turns=tuple(given_turns))


def test_returns() -> None:
    # .5 (.5 (1 + .5) + 0) ...: last .25 + 1, middle 0 + .5 * 1.25, first .5 + .5 * .625.
    assert returns([0.5, 0.0, 0.25], 1.0, 0.5).tolist() == [0.8125, 0.625, 1.25]


def test_credit_of_turns() -> None:
    episodes = [rewarded((2, 1), (1.0, 0.0)), rewarded((2, 1), (0.0, 0.0)), rewarded((2, 1), (0.0, 1.0))]
    episodes.append(rewarded((3,), (0.0,)))
    result = run(
        "turns", {"normalise": "none"}, scores=[1.0, 0.0, 0.0, 1.0], baselines=[0.5] * 4, episodes=episodes
    )
    # Returns of first turns 2, 0, 1, 1, of second ones 1, 0, 1; less .5, less the mean of the others:
    # first: 2 - 2/3, 0 - 4/3, 1 - 1, 1 - 1; second: 1 - .5, 0 - 1, 1 - .5.
    expected = [[1.333333, 0.5], [-1.333333, -1.0], [0.0, 0.5], [0.0]]
    for episode, parts, values in zip(episodes, result, expected, strict=True):
        assert len(parts) == 1
        for turn, value in zip(episode.turns, values, strict=True):
            assert parts[0][turn.start : turn.end].tolist() == near([value] * (turn.end - turn.start))
        outside = [at for at, mask in enumerate(episode.segments[0].loss_mask) if not mask]
        assert parts[0][outside].tolist() == [0.0] * len(outside)


def test_a_turn_gets_no_credit_for_what_came_before_it() -> None:
    # The reward of the first turn alone differs: second turns are told nothing.
    episodes = [rewarded((2, 1), (1.0, 0.0)), rewarded((2, 1), (0.0, 0.0))]
    result = run("turns", scores=[0.0, 0.0], baselines=[0.5, 0.5], episodes=episodes)
    for episode, parts in zip(episodes, result, strict=True):
        second = episode.turns[1]
        assert parts[0][second.start : second.end].tolist() == [0.0]
    assert result[0][0].max() > 0.0 > result[1][0].min()


def test_turns_with_a_memory_of_their_index() -> None:
    own = {"normalise": "none", "discount": 0.5, "memory": 0.5}
    it = registry.make("estimator", "turns", own)
    episodes = [rewarded((2, 3), (1.0, 0.0)), rewarded((2, 3), (0.0, 1.0))]

    def of_turns() -> list[list[float]]:
        given = it(CreditBatch(np.array([1.0, 0.0]), np.array([0.5, 0.5]), episodes=episodes))
        return [
            [float(parts[0][turn.start]) for turn in one.turns]
            for one, parts in zip(episodes, given, strict=True)
        ]

    # Returns 1.5, 1 and .5, 1 less the value .5, discounted once before the last turn.
    assert of_turns() == [[1.25, 0.5], [0.25, 0.5]]
    for episode in episodes:
        it.fold(episode)
    # Turns' rewards come to 1, 0 and .5, 1; means by index: (.5 * 1 + .5) / 1.5 = (.5 * 0 + 1) / 1.5 = 2/3.
    for _ in range(2):  # asking changes nothing
        assert of_turns() == [near([1.25 - 2 / 3, 0.5 - 2 / 3]), near([0.25 - 2 / 3, 0.5 - 2 / 3])]
    again = registry.make("estimator", "turns", own)
    again.load_state_dict(json.loads(json.dumps(it.state_dict())))
    assert again.state_dict() == it.state_dict() == {"sums": [1.0, 1.0], "counts": [1.5, 1.5]}
    # Without a memory nothing is kept.
    plain = registry.make("estimator", "turns", {})
    plain.fold(episodes[0])
    assert plain.state_dict() == {"sums": [], "counts": []}


def test_what_a_turn_is_compared_with_does_not_depend_on_turns_after_it() -> None:
    """Whether another turn follows is this turn's doing: a baseline that knew would be biased."""
    it = registry.make("estimator", "turns", {"normalise": "none", "memory": 0.5})
    it.fold(rewarded((2, 3), (1.0, 1.0)))
    short, long = rewarded((2,), (1.0,)), rewarded((2, 3), (1.0, 1.0))
    given = it(CreditBatch(np.array([0.0, 0.0]), np.array([0.0, 0.0]), episodes=[short, long]))
    firsts = [float(parts[0][one.turns[0].start]) for one, parts in zip((short, long), given, strict=True)]
    assert firsts == [-1.0, 0.0]  # 1 and 2 less the 2 that followed the first turn before


def learned(kind: str, seed: int, *, turns: int = 6, steps: int = 25, batch: int = 32) -> float:
    """Mean chance of the right action after REINFORCE on turns whose right actions do not depend on each other."""
    rng, logits, value = np.random.default_rng(seed), np.zeros(turns), 0.5
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-logits))
        actions = rng.random((batch, turns)) < chance
        rows = [rewarded((1,) * turns, tuple((actions[at] / turns).tolist())) for at in range(batch)]
        scores = actions.mean(axis=1)
        if kind == "turns":  # the rewards of turns are all there is
            given_turns = run(kind, scores=np.zeros(batch), baselines=np.zeros(batch), episodes=rows)
            places = [turn.start for turn in rows[0].turns]
            credit = np.array([parts[0][places] for parts in given_turns])
        else:
            credit = run(kind, scores=scores, baselines=np.full(batch, value))[:, None]
            value += 0.2 * (scores.mean() - value)
        logits += 0.3 * (credit * (actions - chance)).mean(axis=0)
    return float((1 / (1 + np.exp(-logits))).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_credit_of_turns_learns_faster_than_credit_of_episodes(seed: int) -> None:
    assert learned("turns", seed) > learned("spo", seed) + 0.03


def test_d3s() -> None:
    rows = {"scores": [1.0, 0.9, 0.2, 0.0], "baselines": [0.5] * 4, "episodes": [make_episode()] * 4}
    # Of .5, .4, -.3, -.5 the first and the last vary most; half of the tokens are theirs, so they count twice.
    assert run("d3s", {"normalise": "none"}, **rows).tolist() == near([1.0, 0.0, 0.0, -1.0])
    everything = run("d3s", {"share": 1.0}, **rows)
    assert everything.tolist() == near(run("spo", **rows).tolist())


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=7), st.data())
def test_no_other_choice_of_d3s_varies_more(values: list[float], data: st.DataObject) -> None:
    array, count = np.array(values), data.draw(st.integers(1, len(values)))
    kept = most_varied(array, count)
    best = max(float(np.var(array[list(some)])) for some in itertools.combinations(range(len(array)), count))
    assert kept.sum() == count
    assert float(np.var(array[kept])) == pytest.approx(best, abs=1e-9)


def test_the_share_of_d3s_rises_and_is_saved() -> None:
    part, other = (registry.make("estimator", "d3s", {"share": 0.25, "anneal": 4}) for _ in range(2))
    assert part.share == 0.25
    part.fold(make_episode())
    part.fold(make_episode())
    assert part.share == 0.625
    other.load_state_dict(part.state_dict())
    other.fold(make_episode())
    other.fold(make_episode())
    other.fold(make_episode())
    assert other.share == 1.0


def test_gdpo_without_groups() -> None:
    part, rows = (
        registry.make("estimator", "gdpo_value", {}),
        [make_episode(reward_parts=one) for one in PARTS],
    )
    batch = CreditBatch(np.array([1.0, 0.5, 0.0, 1.0]), episodes=rows)
    # Nothing is known: mean .5, deviation .5 of every part: 1 + 1, -1 + 1, -1 - 1, 2; mean .5, deviation 1.914854.
    assert part(batch).tolist() == pytest.approx([0.783350, -0.261117, -1.305583, 0.783350], abs=1e-5)
    for row in rows[:2]:
        part.fold(row)
    # correct of the prompt: count 1.9, mean 1 - 1 / 1.9 = .473684, square alike; of all: count 2.997001, mean .582750
    # after 1 and .499917 after 0. Pulled by 1 / 2.9: .482729. format: 1 and .833306: .942520.
    mean, deviation = part._statistics("p", "correct")
    assert mean == pytest.approx(0.473684 * 1.9 / 2.9 + 0.500000 / 2.9, abs=1e-3)
    assert deviation == pytest.approx(0.4997, abs=1e-3)
    assert part._statistics("p", "format")[0] == pytest.approx(0.9425, abs=2e-3)
    assert part._statistics("other", "format")[0] == pytest.approx(0.8333, abs=1e-3)
    other = registry.make("estimator", "gdpo_value", {})
    other.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert other(batch).tolist() == part(batch).tolist()


def test_no_part_is_in_its_own_mean() -> None:
    part = registry.make("estimator", "gdpo_value", {"deviation_floor": 1e6})  # the sum, all but undivided
    rows = [make_episode(reward_parts={"correct": value}) for value in (0.0, 1.0)]
    low, high = part(CreditBatch(np.array([0.0, 1.0]), episodes=rows)) * 1e6
    assert high - low == pytest.approx(
        2.0
    )  # 1 over the prior deviation .5, whole: GRPO's own mean would halve it
