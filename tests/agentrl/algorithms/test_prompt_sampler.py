from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.prompt_sampler import (
    BACK_OFF_DRAWS,
    BLOCK,
    DeviationWeights,
    PriorityWeights,
    PromptSampler,
    UniformWeights,
    _pick,
    sampling_weights,
)
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config import registry
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.errors import CheckpointError, ConfigError, DataError


def tracker(values: list[float | None]) -> ValueTracker:
    """Prompts initialised so that their value is the one given; None leaves a prompt unseen."""
    it = ValueTracker(len(values), TrackerSettings())
    for prompt, value in enumerate(values):
        if value is not None:
            it.initialise(prompt, [value] * 1_000_000 if value in (0.0, 1.0) else [value * 1.0])
    return it


def sampler(of: ValueTracker, seed: int = 0, **settings: object) -> PromptSampler:
    own = {name: settings.pop(name) for name in ("epsilon", "gamma") if name in settings}
    weights = PriorityWeights(PriorityWeights.Settings(**own))  # type: ignore[arg-type]
    return PromptSampler(of, SamplerSettings(**settings), weights, seed=seed)  # type: ignore[arg-type]


def drain(it: PromptSampler) -> list[int]:
    drawn = []
    while (prompt := it.draw()) is not None:
        drawn.append(prompt)
    return drawn


def test_weights() -> None:
    # sqrt(.25) + .05; .05; sqrt(.0556 * .9444) + .05 = .229 + .05; with gamma: .5 / 8^.5 + .05 = .22678
    weights = sampling_weights(np.array([0.5, 0.0, 1.0, 0.5 / 9]), np.full(4, 8.0), epsilon=0.05)
    assert weights == pytest.approx([0.55, 0.05, 0.05, 0.27907], abs=1e-5)
    divided = sampling_weights(np.array([0.5]), np.array([8.0]), epsilon=0.05, gamma=0.5)
    assert divided == pytest.approx([0.22678], abs=1e-5)


def test_a_prompt_that_is_always_worth_a_half_weighs_no_more_than_a_solved_one() -> None:
    it = ValueTracker(3, TrackerSettings(drift="constant", rho_constant=0.5))
    for _ in range(60):
        for prompt, score in ((0, 0.5), (1, 1.0)):
            it.fold(prompt, score, start_clock=0.0)
    weights = DeviationWeights(PriorityWeights.Settings())
    shares = PromptSampler(it, SamplerSettings(), weights, seed=0).probabilities()
    # No deviation is left: .05 of each. Prompt 2 was never seen: v = (1.5 + .5) / 3 = 2/3, shortfall .25 / 3,
    # deviation sqrt(2/3 - 4/9 - 1/12) = .37268, weight .42268.
    assert shares == pytest.approx([0.05 / 0.52268, 0.05 / 0.52268, 0.42268 / 0.52268], abs=1e-4)
    by_value = PromptSampler(it, SamplerSettings(), seed=0).probabilities()
    assert by_value[0] > by_value[2] > by_value[1]  # .55, .521, .05


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30), st.floats(0.0, 1.0))
def test_rewards_of_0_and_1_are_drawn_as_by_priority(folds: list[tuple[int, bool]], gamma: float) -> None:
    it = ValueTracker(4, TrackerSettings())
    for prompt, solved in folds:
        it.fold(prompt, float(solved), start_clock=0.0)
    own = PriorityWeights.Settings(gamma=gamma)
    of = [
        PromptSampler(it, SamplerSettings(), kind(own), seed=0)
        for kind in (PriorityWeights, DeviationWeights)
    ]
    assert (of[0].probabilities() == of[1].probabilities()).all()


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=40).filter(any), st.data())
def test_a_point_finds_the_weight_whose_share_holds_it(weights: list[float], data: st.DataObject) -> None:
    point = data.draw(st.floats(0, sum(weights), exclude_max=True))
    index, rest = _pick(np.array(weights), point)
    # Exact, as all sums are exact here.
    assert sum(weights[:index]) <= point < sum(weights[: index + 1])
    assert rest == pytest.approx(point - sum(weights[:index]))


def test_a_point_carried_to_the_end_by_rounding_finds_a_positive_weight() -> None:
    assert [_pick(np.array([0.0, 0.3, 0.0]), point)[0] for point in (0.0, 0.3, 5.0)] == [1, 1, 1]


def test_draws_from_several_blocks_follow_the_weights() -> None:
    # Every third prompt is pending, every fifth unseen, the others have values of their own.
    size = 2 * BLOCK + 100
    it = sampler(tracker([None if i % 5 == 0 else i / size for i in range(size)]))
    for prompt in range(0, size, 3):
        it.claim(prompt)
    expected = it.probabilities()
    assert not expected[::3].any()
    counts = np.zeros(size)
    for _ in range(6_000):
        prompt = it.draw()
        assert prompt is not None
        counts[prompt] += 1
        it.returned(prompt)
    # Fails when `_place` adds up the wrong block. Bins of 64; 4 deviations of a bin's count.
    seen, wanted = (np.add.reduceat(x, range(0, size, 64)) for x in (counts, 6_000 * expected))
    assert (np.abs(seen - wanted) < 4.0 * np.sqrt(wanted) + 1.0).all()
    assert not counts[::3].any()


@pytest.mark.slow
def test_draws_follow_the_weights() -> None:
    of = ValueTracker(4, TrackerSettings())
    of.initialise(0, [1.0, 0.0])  # v = .5, w = .55
    of.initialise(1, [0.0] * 8)  # v = 1/18, w = .27907
    # Prompts 2 and 3 are unseen: m = (.5 + .5 + 0) / 3 = 1/3, w = sqrt(2/9) + .05 = .52140.
    it = sampler(of)
    expected = np.array([0.55, 0.27907, 0.52140, 0.52140])
    assert it.probabilities() == pytest.approx(expected / expected.sum(), abs=1e-5)
    counts: Counter[int] = Counter()
    for _ in range(20_000):
        prompt = it.draw()
        assert prompt is not None
        counts[prompt] += 1
        it.returned(prompt)
    # Three standard deviations of a share near .28 over 20,000 draws are .0095.
    for prompt, share in enumerate(expected / expected.sum()):
        assert counts[prompt] / 20_000 == pytest.approx(share, abs=0.01)


def test_unseen_prompts_follow_the_running_mean() -> None:
    of = ValueTracker(3, TrackerSettings())
    it = sampler(of)
    for _ in range(30):
        of.fold(0, 1.0, start_clock=0.0)
    it.refresh(0)
    before = it.probabilities()
    of.fold(1, 1.0, start_clock=0.0)
    it.refresh(1)
    # m moved from (.5 + 1) / 2 = .75 to 2.5 / 3: prompt 2 was not touched, yet weighs less than before.
    expected = sampling_weights(of.values([0, 1, 2]), of.effective_counts([0, 1, 2]), epsilon=0.05)
    assert it.probabilities() == pytest.approx(expected / expected.sum())
    assert before[1] == before[2]


def test_no_prompt_is_drawn_twice_while_pending() -> None:
    it = sampler(tracker([0.5] * 6))
    assert sorted(drain(it)) == [0, 1, 2, 3, 4, 5]
    assert it.pending == 6
    it.folded(3)
    assert drain(it) == [3]


def test_copies_only_when_all_are_pending() -> None:
    it = sampler(tracker([0.5, 0.5, None]), copies_per_prompt=2)
    drawn = drain(it)
    # Fails if `_draw_copy` is tried before the pool is exhausted: the first three would not be all three.
    assert sorted(drawn[:3]) == [0, 1, 2]
    assert sorted(drawn[3:]) == [0, 1, 2]
    assert len(drawn) == 6
    assert it.pending_prompts() == {0: 2, 1: 2, 2: 2}
    it.folded(1)
    it.folded(1)
    assert it.draw() == 1  # not pending at all, so before anyone's second copy
    assert it.draw() == 1
    assert it.draw() is None


def test_a_pool_of_one() -> None:
    it = sampler(tracker([None]))
    assert it.draw() == 0
    assert it.draw() is None
    it.failed(0)
    # It rests, but there is nothing else to play: resting longer would stop the run for good.
    assert it.probabilities() == [1.0]
    assert it.draw() == 0
    it.returned(0)
    assert it.draw() == 0


def test_back_off_is_counted_in_draws_and_doubles() -> None:
    it = sampler(tracker([0.5] * 64))

    def rest_after_failure() -> int:
        while (prompt := it.draw()) != 5:
            assert prompt is not None
            it.returned(prompt)
        it.failed(5)
        start = it.draws
        while it.probabilities()[5] == 0.0:
            prompt = it.draw()
            assert prompt is not None
            if prompt == 5:
                it.returned(5)
                break
            it.returned(prompt)
        return it.draws - start

    # The rest ends with the first draw past it; `probabilities` still shows 0 just before that draw.
    first = rest_after_failure()
    second = rest_after_failure()
    assert first >= BACK_OFF_DRAWS
    assert second >= 2 * BACK_OFF_DRAWS
    assert it.quarantined == ()


def test_three_failures_in_a_row_quarantine() -> None:
    it = sampler(tracker([0.5, 0.5]))
    for _ in range(3):
        drain(it)
        it.failed(1)
    assert it.quarantined == (1,)
    assert not it.exhausted
    assert it.pending_prompts() == {0: 1}
    assert it.draw() is None
    for _ in range(3):
        it.failed(0)
        it.draw()
    assert it.exhausted
    assert it.draw() is None


def test_a_success_forgives_failures() -> None:
    it = sampler(tracker([0.5]))
    for outcome in (it.failed, it.failed, it.folded, it.failed, it.failed):
        assert it.draw() == 0
        outcome(0)
    assert it.quarantined == ()
    assert it.draw() == 0


def test_uniform() -> None:
    it = PromptSampler(tracker([0.5, None, 1.0]), SamplerSettings(), UniformWeights(), seed=0)
    assert it.probabilities() == pytest.approx([1 / 3] * 3)


def test_a_part_of_the_pool() -> None:
    it = PromptSampler(tracker([0.5] * 5), SamplerSettings(), seed=0, prompts=range(2, 4))
    assert sorted(drain(it)) == [2, 3]
    it.folded(3)
    with pytest.raises(DataError, match="prompt 0"):
        it.folded(0)


actions = st.lists(
    st.tuples(st.sampled_from(["draw", "fold", "return", "fail"]), st.integers(0, 20), st.booleans()),
    max_size=60,
)


@given(actions, st.integers(1, 6), st.integers(1, 3), st.integers(0, 3))
def test_schedules(played: list, size: int, copies: int, save_at: int) -> None:
    """Against a plain model: copies, quarantine; a sampler restored in mid-run draws the same."""
    of = tracker([0.5 if i % 2 else None for i in range(size)])
    it = sampler(of, seed=3, copies_per_prompt=copies)
    pending: list[int] = []
    for step, (action, which, success) in enumerate(played):
        if step == save_at * 10:
            twin = sampler(of, seed=99, copies_per_prompt=copies)
            twin.load_state_dict(it.state_dict())
            it = twin
        if action == "draw":
            prompt = it.draw()
            count = Counter(pending)
            playable = [p for p in range(size) if p not in it.quarantined and count[p] < copies]
            assert (prompt is None) == (not playable)
            if prompt is not None:
                assert prompt in playable
                assert count[prompt] == min(count[p] for p in playable)
                pending.append(prompt)
        elif pending:
            prompt = pending.pop(which % len(pending))
            if action == "fold":
                of.fold(prompt, float(success), start_clock=0.0)
                it.folded(prompt)
            else:
                (it.failed if action == "fail" else it.returned)(prompt)
        assert it.pending == len(pending)
        assert it.pending_prompts() == dict(Counter(pending))


@given(st.integers(0, 2**32), st.integers(0, 15))
def test_a_restored_sampler_draws_the_same(seed: int, drawn: int) -> None:
    of = tracker([0.5, None, 0.25, 0.75, None, 0.9, 0.1, None])
    it = sampler(of, seed=seed, copies_per_prompt=2)
    for i in range(drawn):
        prompt = it.draw()
        assert prompt is not None
        if i % 3 == 0:
            of.fold(prompt, 1.0, start_clock=0.0)
            it.folded(prompt)
        elif i % 5 == 1:
            it.failed(prompt)
    state = it.state_dict()
    twin = sampler(of, seed=0, copies_per_prompt=2)
    twin.load_state_dict(state)
    assert drain(twin) == drain(it)


def test_bad_input() -> None:
    it = sampler(tracker([0.5]))
    with pytest.raises(DataError, match="no episode pending"):
        it.folded(0)
    with pytest.raises(CheckpointError, match="pool has 1"):
        it.load_state_dict(sampler(tracker([0.5, 0.5])).state_dict())
    with pytest.raises(CheckpointError, match="format"):
        it.load_state_dict({})
    for settings in ({"copies_per_prompt": 0}, {"quarantine_after": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            sampler(tracker([0.5]), **settings)
    for own in ({"epsilon": 0.0}, {"gamma": -1.0}):
        with pytest.raises(ConfigError, match=f"sampler.{next(iter(own))}"):
            registry.make("sampler", "priority", own)
    with pytest.raises(ConfigError, match="there is no sampler 'hardest'; known: priority, deviation"):
        registry.make("sampler", "hardest", {})
    with pytest.raises(DataError, match="2 prompts must be as many positive numbers"):
        PromptSampler(tracker([0.5, 0.5]), SamplerSettings(), lambda values, counts: values - 1.0, seed=0)
    with pytest.raises(ConfigError, match="cannot draw"):
        PromptSampler(tracker([0.5]), SamplerSettings(), seed=0, prompts=range(3))


def test_the_weight_of_a_draw_is_kept_until_its_prompt_is_folded() -> None:
    it = ValueTracker(3, TrackerSettings(drift="constant", rho_constant=0.875))
    it.initialise(0, [1.0, 0.0])
    sampler = PromptSampler(it, SamplerSettings(fresh_copies=4), seed=0)
    assert sampler.weight(0) == pytest.approx(0.55)  # sqrt(.5 * .5) + .05
    # Never seen: the prior, (1/2 + 1/2) / 2 = .5, of an episode, whatever copies are played of it.
    assert sampler.weight(1) == pytest.approx(0.55)
    it.fold(0, 1.0, start_clock=0.0)
    assert sampler.weight(0) == pytest.approx(0.55)
    sampler.refresh(0)
    assert sampler.weight(0) == pytest.approx((0.5625 * 0.4375) ** 0.5 + 0.05)
