"""Literal numbers are worked by hand from the equations of paper section 4.1."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.value_tracker import D_HALF, ValueTracker, forgetting_factor
from agentrl.config.settings import TrackerSettings
from agentrl.errors import CheckpointError, ConfigError, DataError


def tracker(num_prompts: int = 1, **settings: object) -> ValueTracker:
    return ValueTracker(num_prompts, TrackerSettings(**settings))  # type: ignore[arg-type]


def entry(of: ValueTracker, prompt: int = 0) -> tuple[float, float]:
    state = of.state_dict()
    return float(state["alpha"][prompt]), float(state["beta"][prompt])


@pytest.mark.parametrize(
    ("successes", "alpha", "beta"),
    # N0 = 1 / (1 - .875) = 8; alpha = 8 (s + .5) / 9: 8 * 4.5 / 9 = 4, 8 * 1.5 / 9 = 4/3, 8 * .5 / 9 = 4/9.
    [(4, 4.0, 4.0), (1, 1.333333, 6.666667), (0, 0.444444, 7.555556), (8, 7.555556, 0.444444)],
)
def test_initial_values_are_smoothed(successes: int, alpha: float, beta: float) -> None:
    it = tracker()
    it.initialise(0, [1.0] * successes + [0.0] * (8 - successes))
    assert entry(it) == pytest.approx((alpha, beta), abs=1e-6)
    # s = 0: .4444 / 8 = .0556, not the exact 0 of the paper's plain mean.
    assert it.values([0])[0] == pytest.approx(alpha / 8, abs=1e-6)


@pytest.mark.parametrize(
    ("drift", "rho"),
    # 2^0 = 1 is clipped to .96; 2^(-.005 / .06) = 2^(-1/12) = .943874; 2^(-.06 / .06) = .5 is clipped.
    [(0.0, 0.96), (0.005, 0.943874), (0.06, 0.875)],
)
def test_forgetting_factor(drift: float, rho: float) -> None:
    assert forgetting_factor(drift, 0.06, 0.875, 0.96) == pytest.approx(rho, abs=1e-6)


def test_fold_of_a_success() -> None:
    it = tracker(d_half=0.06)
    it.initialise(0, [1, 0, 1, 0, 1, 0, 1, 0])
    fold = it.fold(0, 1.0, start_clock=0.0)
    # rho = .96: alpha = .96 * 4 + 1 = 4.84, beta = .96 * 4 = 3.84, v = 4.84 / 8.68 = .557604.
    assert entry(it) == pytest.approx((4.84, 3.84))
    assert (fold.rho, fold.value_before, fold.drift) == (0.96, 0.5, 0.0)
    assert fold.value_after == pytest.approx(0.557604, abs=1e-6)
    # The same by equation 7: eta = 1 / (.96 * 8 + 1) = .115207, .5 + .115207 * (1 - .5).
    assert it.values([0])[0] == pytest.approx(0.5 + 0.115207 * 0.5, abs=1e-6)


def test_fold_of_a_score_between_zero_and_one_is_the_moving_average() -> None:
    it = tracker(drift="constant", rho_constant=0.875)
    it.initialise(0, [0.5] * 8)  # (4, 4)
    it.fold(0, 0.25, start_clock=0.0)
    # alpha = 3.5 + .25, beta = 3.5 + .75, v = 3.75 / 8 = .46875 = .5 + (.25 - .5) / (.875 * 8 + 1).
    assert entry(it) == (3.75, 4.25)
    assert it.values([0])[0] == 0.46875


def test_the_deviation_is_that_of_the_scores() -> None:
    # rho .5, prior 1/2 with count 1. After a half: alpha = beta = .75, g = .25, 1/4 - .25 / 1.5 = 1/12.
    # After another: count 1.75, g = .375, 1/4 - .375 / 1.75 = .0357143.
    it = ValueTracker(3, TrackerSettings(drift="constant", rho_constant=0.5))
    it.fold(0, 0.5, start_clock=0.0)
    assert it.deviations([0])[0] == pytest.approx((1 / 12) ** 0.5)
    it.fold(0, 0.5, start_clock=0.0)
    assert it.deviations([0])[0] == pytest.approx(0.0357143**0.5, abs=1e-6)
    # Initial values of .5 and 1: weight 8, (1.5 + .5) / 3 = 2/3 = v, g / N = (.25 / 3), 2/9 - 1/12 = .138889.
    it.initialise(1, [0.5, 1.0])
    assert it.deviations([1])[0] == pytest.approx(0.138889**0.5, abs=1e-6)
    # Never seen: two first visits, values .5 and .75, shortfalls .25 and .125: v = 1.75 / 3, shortfall .125.
    assert it.deviations([2])[0] == pytest.approx((1.75 / 3 * 1.25 / 3 - 0.125) ** 0.5)


def test_drift_counts_from_the_clock_of_the_last_fold() -> None:
    it = tracker(d_half=0.06)
    it.initialise(0, [1.0, 0.0])
    it.advance_clock(0.003)
    it.advance_clock(0.002)
    fold = it.fold(0, 1.0, start_clock=0.005)
    assert (fold.drift, fold.rho) == (0.005, pytest.approx(0.943874, abs=1e-6))
    # An episode that began before the one folded last: D = max(0, .002 - .005) = 0, the stamp stays .005.
    # With `stamp = start_clock` instead of the larger one, the last drift below would be .013.
    assert it.fold(0, 1.0, start_clock=0.002).drift == 0.0
    assert it.fold(0, 1.0, start_clock=0.015).drift == pytest.approx(0.010)


def test_rho_is_clipped_once_for_the_whole_drift() -> None:
    it = tracker(d_half=0.06)
    it.initialise(0, [0.5] * 8)
    for _ in range(10):
        it.advance_clock(0.01)
    # Ten batches of .01 nats: one factor of .875, not .89^10 = .31.
    assert it.effective_counts([0])[0] == pytest.approx(8 * 0.875)
    assert it.fold(0, 0.0, start_clock=it.clock).rho == 0.875


def test_reads_discount_a_copy() -> None:
    it = tracker(d_half=0.06)
    it.initialise(0, [0.5] * 8)
    it.advance_clock(0.005)
    value = it.values([0])[0]
    # Fails if the discounted count is stored: the second read would discount it again.
    first, second = it.effective_counts([0])[0], it.effective_counts([0])[0]
    assert first == second == pytest.approx(8 * 2 ** (-1 / 12))
    assert it.values([0])[0] == value
    assert entry(it) == (4.0, 4.0)


def test_replay_takes_the_drift_it_is_given() -> None:
    it = tracker(drift="replay", d_half=0.06)
    it.initialise(0, [0.5] * 8)
    it.advance_clock(5.0)
    assert it.fold(0, 1.0, start_clock=5.0, drift=0.005).rho == pytest.approx(0.943874, abs=1e-6)
    assert it.fold(0, 1.0, start_clock=5.0).rho == 0.96
    with pytest.raises(DataError, match="'clock'"):
        tracker().fold(0, 1.0, start_clock=0.0, drift=0.1)


def test_a_prompt_never_seen_starts_from_the_mean_of_first_visits() -> None:
    it = tracker(4)
    assert it.values([3])[0] == 0.5
    it.fold(0, 1.0, start_clock=0.0)
    it.fold(0, 1.0, start_clock=0.0)  # a second visit does not count
    it.fold(1, 1.0, start_clock=0.0)
    it.initialise(2, [1.0, 0.0, 0.0, 0.0])
    # (1/2 + 1 + 1 + 1/4) / (1 + 3) = .6875
    assert it.values([3])[0] == 0.6875
    fold = it.fold(3, 0.0, start_clock=0.0)
    # weight 1 of the prior: alpha = .96 * .6875 = .66, beta = .96 * .3125 + 1 = 1.3
    assert fold.value_before == pytest.approx(0.6875)
    assert entry(it, 3) == pytest.approx((0.66, 1.3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.5, 0.99))
def test_effective_count_tends_to_the_window(scores: list[float], rho: float) -> None:
    it = tracker(drift="constant", rho_constant=rho)
    it.initialise(0, [0.5])
    count = 8.0
    for score in scores:
        it.fold(0, score, start_clock=0.0)
        count = rho * count + 1
        assert sum(entry(it)) == pytest.approx(count)
        assert 0.0 < it.values([0])[0] < 1.0


events = st.lists(
    st.tuples(st.integers(0, 4), st.floats(0, 1), st.floats(0, 0.02), st.booleans()), max_size=40
)


@given(events)
def test_state_round_trips(played: list) -> None:
    it = tracker(5)
    for prompt, score, moved, initial in played:
        it.advance_clock(moved)
        if initial and not it.seen([prompt])[0]:
            it.initialise(prompt, [score])
        else:
            it.fold(prompt, score, start_clock=it.clock - moved)
    everything = np.arange(5)
    other = tracker(5)
    other.load_state_dict(it.state_dict())
    assert np.array_equal(other.values(everything), it.values(everything))
    first, second = it.fold(2, 1.0, start_clock=it.clock), other.fold(2, 1.0, start_clock=other.clock)
    assert first == second
    assert it.clock == other.clock


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=20), st.booleans())
def test_a_baseline_never_contains_its_own_reward(batch: list[tuple[int, bool]], initialised: bool) -> None:
    """All values are read, then all scores folded: flipping one score leaves its baseline alone.

    Fails if the fold of an episode is moved before the read of the batch's values, also with several
    episodes of one prompt in a batch.
    """

    def baselines(flipped: int | None) -> np.ndarray:
        it = tracker(3)
        if initialised:
            for prompt in range(3):
                it.initialise(prompt, [1.0, 0.0])
        read = it.values([prompt for prompt, _ in batch])
        for i, (prompt, success) in enumerate(batch):
            it.fold(prompt, float(success != (i == flipped)), start_clock=0.0)
        return read

    reference = baselines(None)
    for i in range(len(batch)):
        assert baselines(i)[i] == reference[i]


def test_a_state_of_before_deviations_were_measured_goes_on() -> None:
    one, other = (ValueTracker(2, TrackerSettings()) for _ in range(2))
    one.fold(0, 1.0, start_clock=0.0)
    state = one.state_dict() | {"format": 1}
    for name in ("shortfall", "first_shortfall"):
        del state[name]
    other.load_state_dict(state)
    assert other.values([0, 1]).tolist() == one.values([0, 1]).tolist()
    assert other.deviations([0, 1]).tolist() == one.deviations([0, 1]).tolist()


def test_the_state_is_a_copy() -> None:
    it = tracker()
    state = it.state_dict()
    it.fold(0, 1.0, start_clock=0.0)
    assert not state["seen"][0]
    assert state["alpha"][0] == 0.0


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf])
def test_scores_outside_the_unit_interval_are_refused(score: float) -> None:
    with pytest.raises(DataError, match=r"prompt 0 got the score .* reward_range"):
        tracker().fold(0, score, start_clock=0.0)
    with pytest.raises(DataError, match="prompt 0"):
        tracker().initialise(0, [score])


def test_a_refused_fold_changes_nothing() -> None:
    it = tracker()
    with pytest.raises(DataError):
        it.fold(0, 2.0, start_clock=0.0)
    with pytest.raises(DataError, match="start clock"):
        it.fold(0, 1.0, start_clock=math.nan)
    assert not it.seen([0])[0]
    assert it.first_visit_mean == 0.5


def test_bad_input() -> None:
    it = tracker()
    for drift in (-1e-9, math.nan, math.inf):
        with pytest.raises(DataError, match="drift"):
            it.advance_clock(drift)
    with pytest.raises(DataError, match="at least one score"):
        it.initialise(0, [])
    it.fold(0, 1.0, start_clock=0.0)
    with pytest.raises(DataError, match="visited before"):
        it.initialise(0, [1.0])
    with pytest.raises(CheckpointError, match="pool has 1 prompts"):
        it.load_state_dict(tracker(2).state_dict())
    with pytest.raises(CheckpointError, match="format"):
        it.load_state_dict({"format": 99})


@pytest.mark.parametrize(
    "settings",
    [{"rho_min": 0.97}, {"rho_max": 1.0}, {"rho_min": 0.0}, {"rho_constant": 1.0}, {"d_half": -1.0}],
)
def test_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        tracker(**settings)
    with pytest.raises(ConfigError, match="at least one prompt"):
        tracker(0)


def test_every_drift_has_a_half_life() -> None:
    for drift in D_HALF:
        assert tracker(drift=drift).fold(0, 1.0, start_clock=0.0).rho > 0.0
