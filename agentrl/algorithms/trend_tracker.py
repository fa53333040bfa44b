"""A value tracker that knows the tide: what all prompts of an environment learn together.

A prompt that is visited rarely remembers what a weaker policy scored. What the scores of a batch exceed their
values by, summed over its prompts, says how far the policy came meanwhile: `TrendTracker` adds it up as a
trend in logits, one for each environment, and carries every value along it. Where no trend moved it is
exactly `ValueTracker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.algorithms.value_tracker import FloatArray, Fold, ValueTracker
from agentrl.config.ranges import Positive, Range
from agentrl.config.settings import TrackerSettings
from agentrl.errors import CheckpointError

SAVED = ("trends", "folded_at", "residual", "curvature", "counted", "inverse", "first_sums", "first_counts")

VERSIONS = 256
"""Trends that are remembered, by the version that began with them; an older episode is given the oldest."""

CLIP = 0.02
"""Values are kept this far from 0 and 1 before their logit is taken, which is infinite there."""


class TrendTracker(ValueTracker):
    """Values of P prompts, each carried along the trend of its environment since its last fold.

    The trend G of an environment is in logits. An entry that was folded last at the trend G0 has the value
    sigmoid(logit(v) + G - G0). After a batch G moves by gain / (1 + d) of a Newton step of its residuals,
    sum(s - v) / (sum v (1 - v) + damping), over prompts that are known; d is the mean staleness of the batch.
    The value of a prompt seen once or twice is drawn to the prior, and its way back from there would read as
    a trend wherever most prompts are hard, or easy.
    Draws by priority choose prompts by their value, and most often those whose value errs to the middle, so
    that scores of hard prompts fall short of it. Both sums therefore weigh an episode by the inverse of what
    its prompt weighed when it was drawn, scaled to a mean of 1 (Hajek's estimator).
    An episode is compared with the trend of the version that it began at: an episode that is late says
    nothing of what was learned since.

    Args:
        own: see `Settings`.
        num_prompts: P; prompts are the integers 0 .. P-1.
        settings: see `TrackerSettings`.
        environments: [P] number of each prompt's environment, from 0; all of one by default.

    Raises:
        ConfigError: the forgetting factors are not 0 < rho_min <= rho_max < 1, or P is not positive.
    """

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `trend`."""

        gain: Positive = 0.3
        """Share of the Newton step that the trend moves by after a batch of staleness 0."""
        damping: Positive = 4.0
        """Added to the curvature: a batch of few prompts, or of decided ones, moves the trend little."""
        known: Annotated[float, Range(least=1)] = 3.0
        """Effective count from which on a prompt's residuals count."""
        prior_window: Annotated[float, Range(above=1)] = 256.0
        """First visits that the value of a prompt never seen is the mean of."""

    def __init__(
        self,
        own: Settings,
        num_prompts: int,
        settings: TrackerSettings,
        environments: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(num_prompts, settings, environments)
        self._own = own
        count = int(self._environment.max()) + 1
        self._trends = np.zeros((1, count))
        self._version = 0
        self._first_sums, self._first_counts = np.zeros(count), np.zeros(count)
        self._folded_at = np.zeros(num_prompts)
        self._residual, self._curvature = np.zeros(count), np.zeros(count)
        self._counted, self._inverse = np.zeros(count), np.zeros(count)
        self._ages: list[int] = []
        self._folded: list[int] = []

    @property
    def trend(self) -> FloatArray:
        """[E] the present trend of each environment, in logits."""
        return self._trends[-1].copy()

    def values(self, prompts: ArrayLike) -> FloatArray:
        """[N] the value of each of the prompts [N] at the present trend."""
        return self.baselines(prompts, self._version)

    def baselines(self, prompts: ArrayLike, start_versions: ArrayLike) -> FloatArray:
        """[N] values of the prompts [N] at the trends of the versions that their episodes began at, [N]."""
        index = np.asarray(prompts, dtype=np.int64)
        shift = self._trend_at(start_versions, self._environment[index]) - self._folded_at[index]
        return carried(ValueTracker.values(self, index), np.where(self._seen[index], shift, 0.0))

    def _trend_at(self, versions: ArrayLike, environments: NDArray[np.int64]) -> FloatArray:
        """[N] the trends [N] environments had when the versions began, [N] or one for all."""
        place = np.asarray(versions, dtype=np.int64) - self._version - 1 + len(self._trends)
        return self._trends[np.clip(place, 0, len(self._trends) - 1), environments]

    def prior(self, prompts: ArrayLike) -> FloatArray:
        """[N] the mean score of the latest first visits in the environment of each of the prompts [N]."""
        means = (self._first_sums + 0.5) / (self._first_counts + 1.0)
        return means[self._environment[np.asarray(prompts, dtype=np.int64)]]

    def _note_first_visit(self, prompt: int, score: float, shortfall: float) -> None:
        super()._note_first_visit(prompt, score, shortfall)
        environment = self._environment[prompt]
        kept = 1.0 - 1.0 / self._own.prior_window
        self._first_sums[environment] = kept * self._first_sums[environment] + score
        self._first_counts[environment] = kept * self._first_counts[environment] + 1.0

    def fold(
        self,
        prompt: int,
        score: float,
        *,
        start_version: int | None = None,
        weight: float = 1.0,
        **options: Any,
    ) -> Fold:
        """Carry a prompt to the trend its episode began at, then fold its score as `ValueTracker` does."""
        version = self._version if start_version is None else start_version
        environment = self._environment[prompt]
        if self._seen[prompt]:
            value = float(self.baselines([prompt], [version])[0])
            count = float(self._alpha[prompt] + self._beta[prompt])
            if value != self._alpha[prompt] / count:
                self._alpha[prompt], self._beta[prompt] = count * value, count * (1.0 - value)
            # A value at its bound cannot follow, and would drive the trend on.
            if count >= self._own.known and CLIP < value < 1.0 - CLIP:
                self._residual[environment] += (score - value) / weight
                self._curvature[environment] += value * (1.0 - value) / weight
                self._counted[environment] += 1.0
                self._inverse[environment] += 1.0 / weight
        fold = super().fold(prompt, score, **options)
        self._folded_at[prompt] = self._trend_at(version, environment)
        self._ages.append(max(0, self._version - version))
        self._folded.append(prompt)
        return fold

    def end_batch(self) -> None:
        """Move the trends by what the folds since the last call exceeded their values by.

        The prompts folded are taken along: their own scores already say where the policy is.
        """
        age = float(np.mean(self._ages)) if self._ages else 0.0
        scale = self._counted / np.where(self._counted > 0.0, self._inverse, 1.0)
        step = scale * self._residual / (scale * self._curvature + self._own.damping)
        moved = self._own.gain / (1.0 + age) * step
        self._trends = np.vstack([self._trends, self._trends[-1] + moved])[-VERSIONS:]
        self._version += 1
        folded = np.unique(np.array(self._folded, dtype=np.int64))
        self._folded_at[folded] += moved[self._environment[folded]]
        for sums in (self._residual, self._curvature, self._counted, self._inverse):
            sums[:] = 0.0
        self._ages, self._folded = [], []

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as copies."""
        arrays = {name: getattr(self, f"_{name}").copy() for name in SAVED}
        rest = {"version": self._version, "ages": np.array(self._ages), "folded": np.array(self._folded)}
        return super().state_dict() | arrays | rest

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state, bit for bit.

        Raises:
            CheckpointError: the state is of another tracker, or of other prompts.
        """
        super().load_state_dict(state)
        for name in SAVED:
            if name not in state:
                raise CheckpointError(
                    "the values were kept by another tracker than `trend`; resume with the tracker.kind that "
                    "the run began with"
                )
            setattr(self, f"_{name}", np.array(state[name], dtype=np.float64))
        self._version = int(state["version"])
        self._ages, self._folded = [[int(one) for one in state[name]] for name in ("ages", "folded")]


def carried(values: FloatArray, shift: FloatArray) -> FloatArray:
    """[N] sigmoid(logit(v) + shift), with v clipped to [.02, .98]; v itself where the shift is 0.

    Args:
        values: [N] in [0, 1].
        shift: [N] in logits.
    """
    clipped = np.clip(values, CLIP, 1.0 - CLIP)
    moved = 1.0 / (1.0 + (1.0 / clipped - 1.0) * np.exp(-shift))
    return np.where(shift == 0.0, values, moved)
