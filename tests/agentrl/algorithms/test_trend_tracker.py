"""Literal numbers are worked by hand from the docstring of `TrendTracker`."""

import numpy as np
import pytest

from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.trend_tracker import TrendTracker, carried
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config.settings import SamplerSettings, TrackerSettings
from agentrl.errors import CheckpointError

CONSTANT = TrackerSettings(drift="constant", rho_constant=0.875)


def tracker(num_prompts: int, environments: list[int] | None = None, gain: float = 0.5) -> TrendTracker:
    return TrendTracker(TrendTracker.Settings(gain=gain), num_prompts, CONSTANT, environments)


def known(num_prompts: int, environments: list[int] | None = None) -> TrendTracker:
    """Every prompt begins at alpha = beta = 4: one success of two, smoothed, at weight 8."""
    it = tracker(num_prompts, environments)
    for prompt in range(num_prompts):
        it.initialise(prompt, [1.0, 0.0])
    return it


def test_a_success_carries_the_other_prompts_of_its_environment() -> None:
    it = known(3, [0, 0, 1])
    it.fold(0, 1.0, start_clock=0.0)
    # Until the batch ends nobody else moves.
    assert it.values([1])[0] == 0.5
    it.end_batch()
    # .5 (1 - .5) / (.5 * .5 + 4) = .25 / 4.25 = .0588235; sigmoid(.0588235) = .5147016.
    assert it.trend == pytest.approx([0.0588235, 0.0])
    assert it.values([1])[0] == pytest.approx(0.5147016)
    # The prompt itself was folded, (.875 * 4 + 1) / (.875 * 8 + 1) = 4.5 / 8, and is not carried besides.
    assert it.values([0])[0] == 0.5625
    assert it.values([2])[0] == 0.5


def test_a_carried_prompt_is_folded_from_where_it_was_carried_to() -> None:
    it = known(2)
    it.fold(0, 1.0, start_clock=0.0)
    it.end_batch()
    fold = it.fold(1, 0.0, start_clock=0.0, start_version=1)
    # (.875 * 8 * .5147016) / (.875 * 8 + 1) = 3.6029112 / 8.
    assert fold.value_before == pytest.approx(0.5147016)
    assert fold.value_after == pytest.approx(0.4503639)
    it.end_batch()
    # -.5 * .5147016 / (.5147016 * .4852984 + 4) = -.2573508 / 4.2497838 = -.0605562.
    assert it.trend[0] == pytest.approx(0.0588235 - 0.0605562, abs=1e-6)


def test_a_late_episode_is_compared_with_the_trend_that_it_began_at_and_moves_it_less() -> None:
    it = known(3)
    it.fold(0, 1.0, start_clock=0.0, start_version=0)
    it.end_batch()
    assert it.baselines([1, 1], [0, 1]) == pytest.approx([0.5, 0.5147016])
    it.fold(1, 1.0, start_clock=0.0, start_version=0)
    it.end_batch()
    # One version late: .5 / (1 + 1) * .5 / 4.25 = .0294118.
    assert it.trend[0] == pytest.approx(0.0588235 + 0.0294118, abs=1e-6)
    # Folded at trend 0 and taken along by this batch only: the batch between them is still to come for it.
    assert it.values([1])[0] == pytest.approx(carried(np.array([0.5625]), np.array([0.0588235]))[0])


def test_values_at_a_bound_do_not_drive_the_trend() -> None:
    it = known(2)
    for _ in range(60):
        it.fold(0, 1.0, start_clock=0.0)
        it.end_batch()
    before = it.trend[0]
    it.fold(0, 1.0, start_clock=0.0)
    it.end_batch()
    assert it.values([0])[0] > 0.98
    assert it.trend[0] == before


def test_without_a_trend_it_is_the_plain_tracker_bit_for_bit() -> None:
    plain, it = ValueTracker(4, CONSTANT), tracker(4, gain=1e-300)
    rng = np.random.default_rng(0)
    for prompt in range(4):
        plain.initialise(prompt, [1.0, 0.0, 0.0])
        it.initialise(prompt, [1.0, 0.0, 0.0])
    for _ in range(200):
        prompt, score = int(rng.integers(4)), float(rng.random())
        assert it.fold(prompt, score, start_clock=0.0) == plain.fold(prompt, score, start_clock=0.0)
    assert np.array_equal(it.values(range(4)), plain.values(range(4)))


def test_the_prior_is_of_the_environment_and_forgets() -> None:
    it = TrendTracker(TrendTracker.Settings(prior_window=2.0), 6, CONSTANT, [0, 0, 0, 0, 1, 1])
    for prompt in (0, 1, 2):
        it.fold(prompt, 1.0, start_clock=0.0)
    # Sums 1, 1.5, 1.75, counts the same: (1.75 + .5) / (1.75 + 1).
    assert it.values([3, 4]) == pytest.approx([2.25 / 2.75, 0.5])
    for prompt in (4,):
        it.fold(prompt, 0.0, start_clock=0.0)
    assert it.values([5])[0] == pytest.approx(0.25)


def play(
    it: TrendTracker,
    rise: float,
    *,
    late: int,
    seed: int,
    batches: int = 150,
    mean: float = -1.0,
) -> list[float]:
    """Trends of a run with prioritised draws whose policy gains `rise` logits in all, `late` versions behind."""
    rng = np.random.default_rng(seed)
    # Skewed: most prompts are hard, so that draws by priority are not symmetrical.
    difficulty, trends = rng.normal(mean, 2.0, len(it)), []
    sampler = PromptSampler(it, SamplerSettings(), seed=1_000 + seed)
    for batch in range(batches):
        start = max(0, batch - late)
        chances = 1.0 / (1.0 + np.exp(-difficulty - rise * start / batches))
        for prompt in [sampler.draw() for _ in range(40)]:
            assert prompt is not None
            score = float(rng.random() < chances[prompt])
            weight = sampler.weight(prompt)
            it.fold(prompt, score, start_clock=0.0, start_version=start, weight=weight)
            sampler.folded(prompt)
        it.end_batch()
        trends.append(float(it.trend[0]))
    return trends


def test_a_prompt_that_is_hardly_known_does_not_move_the_trend() -> None:
    it = tracker(2)
    for visit in range(3):
        it.fold(0, 1.0, start_clock=0.0)
        it.end_batch()
        # Counts before the folds: 1 of the prior, then 1.875 and 2.640625, all below 3.
        assert it.trend[0] == 0.0, visit
    it.fold(0, 1.0, start_clock=0.0)  # .875 * 2.640625 + 1 = 3.310547
    it.end_batch()
    assert it.trend[0] > 0.0


def test_an_episode_weighs_the_inverse_of_what_its_prompt_weighed_in_the_draw() -> None:
    it = known(3)
    it.fold(0, 1.0, start_clock=0.0, weight=0.5)
    it.fold(1, 0.0, start_clock=0.0, weight=0.25)
    it.end_batch()
    # Weights 2 and 4, scaled by 2 / 6: (2 * .5 - 4 * .5) / 3 = -.3333333 over (2 * .25 + 4 * .25) / 3 + 4.
    assert it.trend[0] == pytest.approx(0.5 * -0.3333333 / 4.5)
    # Only what they differ by counts.
    one, other = known(2), known(2)
    for tracker_of, weight in ((one, 1.0), (other, 0.125)):
        tracker_of.fold(0, 1.0, start_clock=0.0, weight=weight)
        tracker_of.fold(1, 1.0, start_clock=0.0, weight=weight)
        tracker_of.end_batch()
    assert one.trend[0] == other.trend[0] > 0.0


@pytest.mark.slow
@pytest.mark.timeout(300)  # six runs of 6,000 episodes
@pytest.mark.parametrize("mean", [-1.0, 1.0])
def test_with_prioritised_draws_and_no_learning_the_trend_stays(mean: float) -> None:
    settings = TrackerSettings(drift="constant", rho_constant=0.96)
    runs = [
        play(TrendTracker(TrendTracker.Settings(), 300, settings), 0.0, late=0, seed=seed, mean=mean)[50:]
        for seed in range(6)
    ]
    # A run wanders by .13, so the mean of six by .05. Where all episodes weigh alike it is -.14 for -1.
    assert abs(float(np.mean(runs))) < 0.12


@pytest.mark.parametrize(
    "late", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)]
)
def test_the_trend_follows_a_policy_that_learns_and_does_not_swing(late: int) -> None:
    settings = TrackerSettings(drift="constant", rho_constant=0.96)
    trends = play(TrendTracker(TrendTracker.Settings(), 300, settings), 3.0, late=late, seed=1)
    assert 1.0 < trends[-1] < 4.0
    assert max(np.abs(np.diff(trends))) < 0.4


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    one, other = known(3), tracker(3)
    one.fold(0, 1.0, start_clock=0.0)
    one.end_batch()
    one.fold(1, 0.5, start_clock=0.0, start_version=0)
    other.load_state_dict(one.state_dict())
    for it in (one, other):
        it.end_batch()
        it.fold(2, 1.0, start_clock=0.0)
        it.end_batch()
    assert np.array_equal(one.trend, other.trend)
    assert np.array_equal(one.baselines(range(3), [0, 1, 3]), other.baselines(range(3), [0, 1, 3]))


def test_the_state_of_another_tracker_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"another tracker than `trend`"):
        tracker(3).load_state_dict(ValueTracker(3, CONSTANT).state_dict())
