"""The prompt sampler: which prompt is played next.

Paper section 4.3: the weight of a prompt is sqrt(v (1 - v)) + epsilon, divided (ICLR version) by
N_eff^gamma. Prompts are drawn one at a time, without replacement among those pending, that is
dispatched and not yet folded. The sampler knows nothing of episodes, engines or wall time: back-off is
counted in draws, so that a run can be repeated.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.value_tracker import UNSEEN_COUNT, ValueTracker
from agentrl.config.part import Part
from agentrl.config.ranges import Amount, Positive
from agentrl.config.settings import SamplerSettings
from agentrl.errors import CheckpointError, ConfigError, DataError

FloatArray: TypeAlias = NDArray[np.float64]

FORMAT = 1
"""Version of the saved state."""

BACK_OFF_DRAWS = 16
"""Draws for which a prompt rests after its first failure; doubled by each further one in a row."""

TRIAL_DRAWS = 64
"""Fewest draws after which a prompt that was set aside is tried again; doubled by each further failure."""


BLOCK = 1024
"""Prompts whose weights are added up together; about the root of the largest pools, a million prompts."""


def sampling_weights(
    values: FloatArray, counts: FloatArray, *, epsilon: float, gamma: float = 0.0
) -> FloatArray:
    """[N] (sqrt(v (1 - v))) / N_eff^gamma + epsilon (paper equation 11; gamma from the ICLR version).

    Args:
        values: [N] v, in [0, 1].
        counts: [N] N_eff, positive.
        epsilon: floor of the weight.
        gamma: 0 is the paper's formula.
    """
    deviation = np.sqrt(np.clip(values * (1.0 - values), 0.0, None))
    if gamma != 0.0:
        deviation = deviation / counts**gamma
    return deviation + epsilon


class Weights(Protocol):
    """How much each prompt is worth playing; what `sampler.kind` names.

    One that requires `deviations` is called with those of the prompts' scores as well, [N].
    """

    def __call__(self, values: FloatArray, counts: FloatArray, *deviations: FloatArray) -> FloatArray:
        """[N] positive weights from values v in [0, 1] and effective counts N_eff, [N] each."""
        ...


class PriorityWeights(Part["PriorityWeights.Settings"]):
    """By what is left to learn (paper equation 11)."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `priority`."""

        epsilon: Positive = 0.05
        """Added to sqrt(v (1 - v)), so that no prompt is forgotten."""
        gamma: Amount = 0.0
        """Divides the weight by the effective count to this power."""

    def __call__(self, values: FloatArray, counts: FloatArray, *_: FloatArray) -> FloatArray:
        """[N] `sampling_weights`."""
        return sampling_weights(values, counts, epsilon=self.settings.epsilon, gamma=self.settings.gamma)


class DeviationWeights(PriorityWeights):
    """By the measured deviation of a prompt's scores, for rewards that are not only 0 and 1.

    Of such rewards sqrt(v (1 - v)) says nothing: a prompt that is always worth a half has the greatest
    weight there, and nothing is left to learn from it. Where every score is 0 or 1 it draws as `priority`.
    """

    requires = ("deviations",)

    def __call__(self, values: FloatArray, counts: FloatArray, *deviations: FloatArray) -> FloatArray:
        """[N] deviation / N_eff^gamma + epsilon."""
        (deviation,) = deviations
        if self.settings.gamma != 0.0:
            deviation = deviation / counts**self.settings.gamma
        return deviation + self.settings.epsilon


class UniformWeights:
    """All prompts alike."""

    def __call__(self, values: FloatArray, counts: FloatArray, *_: FloatArray) -> FloatArray:
        """[N] ones."""
        return np.ones(len(values))


class PromptSampler:
    """Draws prompts of a tracker by how much there is left to learn from them.

    Sums of weights are kept for blocks of prompts, so that a draw looks at one block only. Prompts never seen
    share one value that moves with every first visit, so of these a block keeps the number.

    Args:
        tracker: whose values and counts make the weights.
        settings: see `SamplerSettings`; its kind is not looked at.
        weights: the kind; `priority` as it is by default.
        seed: of the draws.
        prompts: the part of the tracker's prompts to draw from, for one of several mixed environments;
            all by default.

    Raises:
        ConfigError: a setting makes no sense.
    """

    def __init__(
        self,
        tracker: ValueTracker,
        settings: SamplerSettings,
        weights: Weights | None = None,
        *,
        seed: int,
        prompts: range | None = None,
    ) -> None:
        _check(settings)
        self._prompts = range(len(tracker)) if prompts is None else prompts
        if not len(self._prompts) or self._prompts.step != 1 or self._prompts[-1] >= len(tracker):
            raise ConfigError(f"the sampler cannot draw from {self._prompts} of {len(tracker)} prompts")
        self._tracker, self._settings = tracker, settings
        self._weigh = weights or PriorityWeights(PriorityWeights.Settings())
        self._measures = "deviations" in getattr(self._weigh, "requires", ())
        self._random = np.random.Generator(np.random.PCG64(seed))
        size = len(self._prompts)
        self._copies = np.zeros(size, dtype=np.int32)
        self._failures = np.zeros(size, dtype=np.int32)
        self._resting: list[tuple[int, int]] = []
        self._is_resting = np.zeros(size, dtype=np.bool_)
        self._draws = 0
        self._pending = 0
        self._num_quarantined = 0
        self._weights = np.zeros(size)
        self._fresh = np.zeros(size, dtype=np.bool_)
        blocks = -(-size // BLOCK)
        self._seen_sums, self._fresh_counts = np.zeros(blocks), np.zeros(blocks)
        self.refresh_all()

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def pending(self) -> int:
        """Episodes drawn and neither folded, returned nor failed."""
        return self._pending

    @property
    def draws(self) -> int:
        """Prompts drawn so far."""
        return self._draws

    @property
    def quarantined(self) -> tuple[int, ...]:
        """Prompts set aside after too many failures in a row; now and then one is tried again."""
        limit = self._settings.quarantine_after
        return tuple(int(self._prompts[i]) for i in np.flatnonzero(self._failures >= limit))

    @property
    def exhausted(self) -> bool:
        """Whether every prompt is set aside."""
        return self._num_quarantined == len(self)

    def probabilities(self) -> FloatArray:
        """[P] probability of each prompt at the next draw; all 0 where `draw` would return None."""
        weights = self._idle_weights(slice(None), self._fresh_weight())
        if weights.sum() <= 0.0 and (soonest := self._soonest_rested()) is not None:
            weights[soonest] = 1.0
        elif weights.sum() <= 0.0:
            weights = self._copy_weights()
        total = float(weights.sum())
        return weights / total if total > 0.0 else weights

    def draw(self) -> int | None:
        """Draw a prompt and mark it pending.

        Prompts that are not pending come first, then one that rests after a failure, then, up to
        `copies_per_prompt`, further copies of pending prompts.

        Returns:
            The prompt; None when every one is pending at its copies or set aside.
        """
        self._wake_due()
        index = self._draw_idle()
        if index is None:
            index = self._draw_copy()
        if index is None:
            return None
        self._draws += 1
        self._pending += 1
        self._copies[index] += 1
        self._place(index)
        return int(self._prompts[index])

    def weight(self, prompt: int) -> float:
        """What an episode of a prompt weighed when it was drawn: weights change when a prompt is folded.

        Later ones of several copies in flight get what the prompt weighs since the first was folded.
        """
        index = self._index(prompt)
        if self._fresh[index]:
            return self._fresh_weight() * self._settings.fresh_copies
        return float(self._weights[index])

    def copies(self, prompt: int) -> int:
        """Episodes of a prompt in flight."""
        return int(self._copies[self._index(prompt)])

    def copy(self, prompt: int) -> None:
        """Mark another episode of a pending prompt pending; it takes no number, and is no draw."""
        self._pending += 1
        self._copies[self._index(prompt)] += 1

    def claim(self, prompt: int) -> None:
        """Mark a prompt pending as a `draw` of an earlier attempt did; the draws that follow are the same."""
        index = self._index(prompt)
        self._wake_due()
        self._random.random()  # a draw takes exactly one number
        self._draws += 1
        self._pending += 1
        self._copies[index] += 1
        self._place(index)

    def refresh(self, prompt: int) -> None:
        """Take a prompt's present value and count from the tracker."""
        index = self._index(prompt)
        self._refresh(index, index + 1)
        self._place(index)

    def refresh_all(self) -> None:
        """Take all values and counts from the tracker, as after initial values were set."""
        self._refresh(0, len(self))
        self._rebuild()

    def _refresh(self, first: int, last: int) -> None:
        part, start = slice(first, last), self._prompts.start
        prompts = np.arange(start + first, start + last)
        self._fresh[part] = ~self._tracker.seen(prompts)
        tracker = self._tracker
        measured = (tracker.deviations(prompts),) if self._measures else ()
        self._weights[part] = self._weigh_checked(
            tracker.values(prompts), tracker.effective_counts(prompts), *measured
        )

    def folded(self, prompt: int) -> None:
        """An episode of the prompt was folded: it is not pending any more, and its weight changed."""
        index = self._end(prompt)
        self._forgive(index)
        self.refresh(prompt)

    def returned(self, prompt: int) -> None:
        """An episode of the prompt was cancelled or given up, through no fault of the prompt."""
        self._place(self._end(prompt))

    def failed(self, prompt: int) -> None:
        """An episode of the prompt failed: it rests, or is set aside for long after too many in a row."""
        self._fail(self._end(prompt))

    def put_aside(self, prompt: int) -> None:
        """Set a prompt aside at once: it is known that its episodes would fail."""
        index = self._index(prompt)
        if self._failures[index] < self._settings.quarantine_after:
            self._failures[index] = self._settings.quarantine_after - 1
            self._fail(index)

    def _fail(self, index: int) -> None:
        self._failures[index] += 1
        beyond = int(self._failures[index]) - self._settings.quarantine_after
        if beyond == 0:
            self._num_quarantined += 1
        if beyond >= 0:
            self._stop_resting(index)
            self._rest(index, max(TRIAL_DRAWS, len(self)) * 2 ** min(beyond, 10))
        elif not self._is_resting[index]:
            self._rest(index, BACK_OFF_DRAWS * 2 ** (int(self._failures[index]) - 1))
        self._place(index)

    def forgive(self) -> int:
        """Forget all failures; returns how many prompts had been set aside."""
        count, self._num_quarantined = self._num_quarantined, 0
        self._failures[:] = 0
        self._is_resting[:] = False
        self._resting = []
        self._rebuild()
        return count

    def _rest(self, index: int, draws: int) -> None:
        self._is_resting[index] = True
        heapq.heappush(self._resting, (self._draws + draws, index))

    def _stop_resting(self, index: int) -> None:
        if self._is_resting[index]:
            self._is_resting[index] = False
            self._resting = [item for item in self._resting if item[1] != index]
            heapq.heapify(self._resting)

    def _index(self, prompt: int) -> int:
        if prompt not in self._prompts:
            raise DataError(f"prompt {prompt} is not among {self._prompts}")
        return prompt - self._prompts.start

    def _end(self, prompt: int) -> int:
        index = self._index(prompt)
        if self._copies[index] < 1:
            raise DataError(f"prompt {prompt} has no episode pending")
        self._copies[index] -= 1
        self._pending -= 1
        return index

    def _forgive(self, index: int) -> None:
        if self._failures[index] >= self._settings.quarantine_after:
            self._num_quarantined -= 1
        self._failures[index] = 0
        self._stop_resting(index)

    def _wake_due(self) -> None:
        while self._resting and self._resting[0][0] <= self._draws:
            _, index = heapq.heappop(self._resting)
            self._is_resting[index] = False
            self._place(index)
        if not self._seen_sums.any() and not self._fresh_counts.any():
            # Resting while nothing else can be played would idle a slot, or the whole run.
            soonest = self._soonest_rested()
            if soonest is not None:
                self._stop_resting(soonest)
                self._place(soonest)

    def _soonest_rested(self) -> int | None:
        """The prompt whose rest ends first, of those that have no copy in flight and are not set aside."""
        limit = self._settings.quarantine_after
        idle = (
            item for item in self._resting if not self._copies[item[1]] and self._failures[item[1]] < limit
        )
        return min(idle, default=(0, None))[1]

    def _weigh_checked(self, values: FloatArray, counts: FloatArray, *measured: FloatArray) -> FloatArray:
        weights = np.asarray(self._weigh(values, counts, *measured), dtype=np.float64)
        if weights.shape != values.shape or not (np.isfinite(weights) & (weights > 0.0)).all():
            raise DataError(
                f"the weights of {len(values)} prompts must be as many positive numbers, got {weights!r:.200}"
            )
        return weights

    def _fresh_weight(self) -> float:
        any_prompt = [self._prompts.start]
        measured = (self._tracker.prior_deviations(any_prompt),) if self._measures else ()
        prior = self._tracker.prior(any_prompt)
        weight = self._weigh_checked(prior, np.array([UNSEEN_COUNT]), *measured)[0]
        return float(weight) / self._settings.fresh_copies  # a weight is of an episode, not of a draw

    def _idle_weights(self, part: slice, fresh_weight: float) -> FloatArray:
        """Weights of a part of the prompts; 0 for those pending or at rest."""
        idle = (self._copies[part] == 0) & ~self._is_resting[part]
        return np.where(idle, np.where(self._fresh[part], fresh_weight, self._weights[part]), 0.0)

    def _place(self, index: int) -> None:
        """Add up the block of a prompt anew: a sum kept by differences would drift from its parts."""
        block = index // BLOCK
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        idle = (self._copies[part] == 0) & ~self._is_resting[part]
        fresh = self._fresh[part]
        self._seen_sums[block] = self._weights[part][idle & ~fresh].sum()
        self._fresh_counts[block] = np.count_nonzero(idle & fresh)

    def _rebuild(self) -> None:
        for index in range(0, len(self), BLOCK):
            self._place(index)

    def _draw_idle(self) -> int | None:
        fresh_weight = self._fresh_weight()
        blocks = self._seen_sums + fresh_weight * self._fresh_counts
        if not blocks.any():
            return None
        block, point = _pick(blocks, self._random.random() * float(blocks.sum()))
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        return part.start + _pick(self._idle_weights(part, fresh_weight), point)[0]

    def _copy_weights(self) -> FloatArray:
        """[P] weights of the prompts with the fewest copies, where another copy is allowed."""
        playable = (
            (self._failures < self._settings.quarantine_after)
            & (self._copies > 0)
            & (self._copies < self._settings.copies_per_prompt)
        )
        if not playable.any():
            return np.zeros(len(self))
        playable &= self._copies == self._copies[playable].min()
        return np.where(playable, np.where(self._fresh, self._fresh_weight(), self._weights), 0.0)

    def _draw_copy(self) -> int | None:
        # Linear in the pool, and reached only when the whole pool is in flight, so the pool is small.
        if self._settings.copies_per_prompt < 2:
            return None
        weights = self._copy_weights()
        return _pick(weights, self._random.random() * float(weights.sum()))[0] if weights.any() else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, random state included, as copies: arrays [P] and plain values."""
        return {
            "format": FORMAT,
            "random": json.dumps(self._random.bit_generator.state),
            "draws": self._draws,
            "weights": self._weights.copy(),
            "fresh": self._fresh.copy(),
            "copies": self._copies.copy(),
            "failures": self._failures.copy(),
            "resting": np.array(self._resting, dtype=np.int64).reshape(-1, 2),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; the draws that follow are the same.

        Pending prompts stay pending. Who resumes without their episodes calls `returned` for each.

        Raises:
            CheckpointError: the state is of another format or another number of prompts.
        """
        if int(state.get("format", 0)) != FORMAT:
            raise CheckpointError(f"sampler state of format {state.get('format')!r}, expected {FORMAT}")
        weights = np.asarray(state["weights"], dtype=np.float64)
        if weights.shape != (len(self),):
            raise CheckpointError(
                f"sampler state holds {len(weights)} prompts and the pool has {len(self)}; "
                "resume with the data the run began with"
            )
        self._random.bit_generator.state = json.loads(str(state["random"]))
        self._draws = int(state["draws"])
        self._weights = weights.copy()
        self._fresh = np.array(state["fresh"], dtype=np.bool_)
        self._copies = np.array(state["copies"], dtype=np.int32)
        self._failures = np.array(state["failures"], dtype=np.int32)
        self._resting = [(int(due), int(index)) for due, index in np.asarray(state["resting"]).reshape(-1, 2)]
        heapq.heapify(self._resting)
        self._is_resting = np.zeros(len(self), dtype=np.bool_)
        self._is_resting[[index for _, index in self._resting]] = True
        self._pending = int(self._copies.sum())
        self._num_quarantined = int((self._failures >= self._settings.quarantine_after).sum())
        self._rebuild()

    def pending_prompts(self) -> dict[int, int]:
        """Copies in flight of each pending prompt."""
        return {int(self._prompts[i]): int(self._copies[i]) for i in np.flatnonzero(self._copies)}


def _check(settings: SamplerSettings) -> None:
    if settings.copies_per_prompt < 1:
        raise ConfigError(f"sampler.copies_per_prompt = {settings.copies_per_prompt} must be at least 1")
    if settings.quarantine_after < 1:
        raise ConfigError(f"sampler.quarantine_after = {settings.quarantine_after} must be at least 1")


def _pick(weights: FloatArray, point: float) -> tuple[int, float]:
    """The index whose share of [0, sum of weights) holds `point`, and how far into it; never of weight 0."""
    ends = np.cumsum(weights)
    # Rounding may carry the point to the very end.
    index = int(min(np.searchsorted(ends, point, side="right"), np.flatnonzero(weights)[-1]))
    return index, point - float(ends[index] - weights[index])
