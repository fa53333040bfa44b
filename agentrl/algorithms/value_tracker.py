"""The value tracker: for each prompt, how likely the current policy is to solve it.

Paper section 4.1. Each prompt has a row (alpha, beta, stamp) in flat arrays; its value is
alpha / (alpha + beta), its effective count alpha + beta. Beside them stands what its scores fall short of
being 0 or 1, by which their deviation is known. The tracker knows nothing of episodes,
batches or policies: who calls `fold` decides what counts as a visit and in which order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.config.settings import TrackerSettings
from agentrl.errors import CheckpointError, ConfigError, DataError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

FORMAT = 2
"""Version of the saved state."""

D_HALF = {"clock": 0.08, "replay": 0.06, "constant": math.inf}
"""Drift, in nats a token, that halves what is remembered, where the settings leave it open.

0.06 is the constant of the released SPO code, which measures drift as `replay` does. The clock adds up
what every batch moved, also where one batch undoes another, so it runs ahead of replay: 0.08 makes
their median rho agree where a prompt comes back every fourth batch (`docs/spo.md`, measured)."""

UNSEEN_COUNT = 1.0
"""Effective count of a prompt never visited. The mean of other prompts says little about this one, so
it weighs as much as one visit (the released code starts such prompts at alpha = beta = 1/2)."""


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold did to one prompt."""

    rho: float
    """Forgetting factor applied."""
    value_before: float
    value_after: float
    drift: float
    """Drift since the previous visit, in nats a token; 0 on the first one."""


def forgetting_factor(drift: ArrayLike, d_half: float, rho_min: float, rho_max: float) -> FloatArray:
    """rho = clip(2^(-drift / d_half), rho_min, rho_max), paper section 4.1; clipped once.

    Args:
        drift: [...] how far the policy moved since the last visit, in nats a token, at least 0.
        d_half: drift at which the unclipped factor is one half.
        rho_min: strongest forgetting.
        rho_max: weakest forgetting.
    """
    return np.clip(np.exp2(-np.asarray(drift) / d_half), rho_min, rho_max)


class ValueTracker:
    """Values of P prompts, learned from one graded episode at a time.

    Args:
        num_prompts: P; prompts are the integers 0 .. P-1.
        settings: see `TrackerSettings`.
        environments: [P] number of each prompt's environment, from 0; all of one by default. The paper's
            tracker does not look at it.

    Raises:
        ConfigError: the forgetting factors are not 0 < rho_min <= rho_max < 1, or P is not positive.
    """

    def __init__(
        self,
        num_prompts: int,
        settings: TrackerSettings,
        environments: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        if num_prompts < 1:
            raise ConfigError(f"the value tracker needs at least one prompt, got {num_prompts}")
        _check(settings)
        self._settings = settings
        self._d_half = settings.d_half or D_HALF[settings.drift]
        self._alpha = np.zeros(num_prompts)
        self._beta = np.zeros(num_prompts)
        self._shortfall = np.zeros(num_prompts)
        self._stamp = np.zeros(num_prompts)
        self._visits = np.zeros(num_prompts, dtype=np.int64)
        self._seen = np.zeros(num_prompts, dtype=np.bool_)
        self._first_sum, self._first_count, self._first_shortfall = 0.0, 0, 0.0
        self._clock = 0.0
        self._environment = np.zeros(num_prompts, dtype=np.int64)
        if environments is not None:
            self._environment[:] = environments

    def __len__(self) -> int:
        return len(self._alpha)

    @property
    def clock(self) -> float:
        """Drift of the learner accumulated over all its batches, in nats a token."""
        return self._clock

    @property
    def first_visit_mean(self) -> float:
        """Running mean of the scores of first visits: the value of a prompt never seen.

        Half a success and half a failure are counted in, so that it starts at 0.5.
        """
        return (self._first_sum + 0.5) / (self._first_count + 1)

    @property
    def _prior_shortfall(self) -> float:
        return self._first_shortfall / (self._first_count + 1)

    def prior(self, prompts: ArrayLike) -> FloatArray:
        """[N] the value of each of the prompts [N] if it were never seen."""
        return np.full(np.size(prompts), self.first_visit_mean)

    def advance_clock(self, drift: float) -> None:
        """Add the learner's drift over one batch, in nats a token.

        Raises:
            DataError: the drift is negative or not finite.
        """
        if not (math.isfinite(drift) and drift >= 0.0):
            raise DataError(f"the drift of a batch must be finite and at least 0, got {drift}")
        self._clock += drift

    def initialise(self, prompt: int, scores: Sequence[float]) -> None:
        """Set a prompt's first value from n0 rollouts of the initial policy.

        alpha = N0 (s + 1/2) / (n0 + 1), beta = N0 (n0 - s + 1/2) / (n0 + 1), N0 = 1 / (1 - rho_min).
        The released code; the paper (equation 6) does not smooth, which starts a prompt that failed
        n0 times at exactly 0, from where it is hardly ever drawn again.

        Args:
            prompt: the prompt.
            scores: [n0] scores in [0, 1].

        Raises:
            DataError: no score, a score outside [0, 1], or the prompt was visited before.
        """
        if not len(scores):
            raise DataError(f"prompt {prompt} needs at least one score to be initialised")
        if self._seen[prompt]:
            raise DataError(f"prompt {prompt} was visited before and cannot be initialised again")
        total = math.fsum(_checked_score(prompt, score) for score in scores)
        count = len(scores)
        weight = 1.0 / (1.0 - self._settings.rho_min)
        self._alpha[prompt] = weight * (total + 0.5) / (count + 1)
        self._beta[prompt] = weight * (count - total + 0.5) / (count + 1)
        shortfall = math.fsum(score * (1.0 - score) for score in scores)
        self._shortfall[prompt] = weight * shortfall / (count + 1)
        self._stamp[prompt] = self._clock
        self._note_first_visit(prompt, total / count, shortfall / count)

    def seen(self, prompts: ArrayLike) -> NDArray[np.bool_]:
        """[N] whether each of the prompts [N] was initialised or folded before."""
        return self._seen[np.asarray(prompts, dtype=np.int64)]

    def visits(self, prompts: ArrayLike) -> IntArray:
        """[N] how many episodes of each of the prompts [N] were folded."""
        return self._visits[np.asarray(prompts, dtype=np.int64)]

    def baselines(self, prompts: ArrayLike, start_versions: ArrayLike) -> FloatArray:
        """[N] baselines of episodes not yet folded, from their prompts [N] and start versions [N].

        They are the values; the paper's tracker does not look at the versions.
        """
        return self.values(prompts)

    def values(self, prompts: ArrayLike) -> FloatArray:
        """[N] the value of each of the prompts [N] under the present policy.

        Forgetting scales alpha and beta alike, so it never changes a value.
        """
        index = np.asarray(prompts, dtype=np.int64)
        alpha, count = self._alpha[index], self._alpha[index] + self._beta[index]
        seen = self._seen[index]
        return np.where(seen, alpha / np.where(seen, count, 1.0), self.prior(index))

    def deviations(self, prompts: ArrayLike) -> FloatArray:
        """[N] standard deviation of the scores of each of the prompts [N], by their second moment.

        sqrt(v - v^2 - g / (alpha + beta)), where g is the sum of score (1 - score), forgotten as alpha and
        beta are; it is 0 where every score is 0 or 1, and the deviation then sqrt(v (1 - v)) exactly.
        """
        index = np.asarray(prompts, dtype=np.int64)
        values, seen = self.values(index), self._seen[index]
        count = self._alpha[index] + self._beta[index]
        shortfall = self._shortfall[index] / np.where(seen, count, 1.0)
        return np.where(seen, _deviation(values, shortfall), self.prior_deviations(index))

    def prior_deviations(self, prompts: ArrayLike) -> FloatArray:
        """[N] `deviations` of the prompts [N] if they were never seen: the mean shortfall of first visits."""
        return _deviation(self.prior(prompts), self._prior_shortfall)

    def effective_counts(self, prompts: ArrayLike) -> FloatArray:
        """[N] N_eff of the prompts [N], discounted to the present clock; nothing is stored.

        It is what a fold at this moment would keep. In `replay` mode the drift of a prompt is known
        only once its previous episode was scored again, so there the count is not discounted.
        """
        index = np.asarray(prompts, dtype=np.int64)
        count = self._alpha[index] + self._beta[index]
        if self._settings.drift != "replay":
            count = count * self._rho(np.maximum(0.0, self._clock - self._stamp[index]))
        return np.where(self._seen[index], count, UNSEEN_COUNT)

    def fold(
        self,
        prompt: int,
        score: float,
        *,
        start_clock: float,
        drift: float | None = None,
        start_version: int | None = None,
        weight: float = 1.0,
    ) -> Fold:
        """Fold the score of one episode into its prompt (paper equation 5).

        alpha = rho alpha + score, beta = rho beta + 1 - score. A score between 0 and 1 gives the
        moving average of equation 7, so non-binary rewards need no other formula.

        Args:
            prompt: the prompt.
            score: reward mapped to [0, 1].
            start_clock: the clock when the episode's start version began.
            drift: `replay` mode only: mean |difference of log-probability| of the prompt's previous
                episode, in nats a token; None where there is no previous episode to score again.
            start_version: policy version that the episode began at; the paper's tracker does not look at it.
            weight: what the prompt weighed in the draw of the episode, positive; not looked at here either.

        Raises:
            DataError: the score is outside [0, 1], a drift is not finite and at least 0, or a drift
                was given outside `replay` mode.
        """
        score = _checked_score(prompt, score)
        moved = self._drift(prompt, start_clock, drift)
        if not self._seen[prompt]:
            mean = float(self.prior([prompt])[0])
            self._alpha[prompt], self._beta[prompt] = UNSEEN_COUNT * mean, UNSEEN_COUNT * (1.0 - mean)
            self._shortfall[prompt] = UNSEEN_COUNT * self._prior_shortfall
            self._stamp[prompt] = start_clock
            self._note_first_visit(prompt, score, score * (1.0 - score))
        rho = float(self._rho(moved))
        alpha, beta = float(self._alpha[prompt]), float(self._beta[prompt])
        before = alpha / (alpha + beta)
        alpha, beta = rho * alpha + score, rho * beta + (1.0 - score)
        self._alpha[prompt], self._beta[prompt] = alpha, beta
        self._shortfall[prompt] = rho * self._shortfall[prompt] + score * (1.0 - score)
        self._stamp[prompt] = max(float(self._stamp[prompt]), start_clock)
        self._visits[prompt] += 1
        return Fold(rho=rho, value_before=before, value_after=alpha / (alpha + beta), drift=moved)

    def end_batch(self) -> None:
        """All episodes of a batch were folded, and the next policy version begins."""

    def _note_first_visit(self, prompt: int, score: float, shortfall: float) -> None:
        self._seen[prompt] = True
        self._first_sum += score
        self._first_shortfall += shortfall
        self._first_count += 1

    def _drift(self, prompt: int, start_clock: float, drift: float | None) -> float:
        if drift is not None:
            if self._settings.drift != "replay":
                raise DataError(f"a fold took a drift although `tracker.drift` is {self._settings.drift!r}")
            if not (math.isfinite(drift) and drift >= 0.0):
                raise DataError(f"the drift of prompt {prompt} must be finite and at least 0, got {drift}")
            return drift
        if not math.isfinite(start_clock):
            raise DataError(f"the start clock of prompt {prompt} must be finite, got {start_clock}")
        if self._settings.drift != "clock" or not self._seen[prompt]:
            return 0.0
        # An episode may have begun before the one folded last: it moved the policy by nothing.
        return max(0.0, start_clock - float(self._stamp[prompt]))

    def _rho(self, drift: ArrayLike) -> FloatArray:
        """[...] forgetting factors after drifts [...]."""
        settings = self._settings
        if settings.drift == "constant":
            return np.full(np.shape(drift), settings.rho_constant)
        return forgetting_factor(drift, self._d_half, settings.rho_min, settings.rho_max)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as copies: arrays [P] and plain numbers."""
        return {
            "format": FORMAT,
            "clock": self._clock,
            "first_sum": self._first_sum,
            "first_count": self._first_count,
            "first_shortfall": self._first_shortfall,
            "alpha": self._alpha.copy(),
            "beta": self._beta.copy(),
            "shortfall": self._shortfall.copy(),
            "stamp": self._stamp.copy(),
            "visits": self._visits.copy(),
            "seen": self._seen.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state, bit for bit.

        Raises:
            CheckpointError: the state is of another format or another number of prompts.
        """
        if (
            int(state.get("format", 0)) == 1
        ):  # of before deviations were measured: right for scores of 0 and 1
            state = {**state, "shortfall": np.zeros(len(state["alpha"])), "first_shortfall": 0.0}
        elif int(state.get("format", 0)) != FORMAT:
            raise CheckpointError(f"tracker state of format {state.get('format')!r}, expected {FORMAT}")
        names = ("alpha", "beta", "shortfall", "stamp", "visits", "seen")
        arrays = {name: np.asarray(state[name]) for name in names}
        for name, values in arrays.items():
            if values.shape != (len(self),):
                raise CheckpointError(
                    f"tracker state holds {values.shape} for {name!r} and the pool has {len(self)} prompts; "
                    "resume with the data the run began with"
                )
        self._alpha = arrays["alpha"].astype(np.float64)
        self._beta = arrays["beta"].astype(np.float64)
        self._shortfall = arrays["shortfall"].astype(np.float64)
        self._stamp = arrays["stamp"].astype(np.float64)
        self._visits = arrays["visits"].astype(np.int64)
        self._seen = arrays["seen"].astype(np.bool_)
        self._clock = float(state["clock"])
        self._first_sum, self._first_count = float(state["first_sum"]), int(state["first_count"])
        self._first_shortfall = float(state["first_shortfall"])


def _deviation(values: FloatArray, shortfall: ArrayLike) -> FloatArray:
    return np.sqrt(np.clip(values * (1.0 - values) - np.asarray(shortfall), 0.0, None))


def _checked_score(prompt: int, score: float) -> float:
    if not 0.0 <= score <= 1.0:  # also false for nan
        raise DataError(
            f"prompt {prompt} got the score {score}; scores lie in [0, 1] (map the reward by reward_range)"
        )
    return float(score)


def _check(settings: TrackerSettings) -> None:
    if not 0.0 < settings.rho_min <= settings.rho_max < 1.0:
        raise ConfigError(
            f"tracker.rho_min = {settings.rho_min} and tracker.rho_max = {settings.rho_max} must satisfy "
            "0 < rho_min <= rho_max < 1"
        )
    if not 0.0 < settings.rho_constant < 1.0:
        raise ConfigError(f"tracker.rho_constant = {settings.rho_constant} must lie between 0 and 1")
    if settings.d_half < 0.0 or not math.isfinite(settings.d_half):
        raise ConfigError(f"tracker.d_half = {settings.d_half} must be positive, or 0 for the fitted value")
    if settings.drift not in D_HALF:
        raise ConfigError(f"tracker.drift = {settings.drift!r} must be one of {sorted(D_HALF)}")
