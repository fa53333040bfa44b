"""From scores to advantages: one number per episode, for all its trainable tokens.

Pure functions over a batch of B episodes, and the estimators a run can choose from. This module knows
nothing of how values are tracked, how episodes are drawn, or what the loss does with an advantage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.config.settings import EstimatorSettings
from agentrl.errors import ConfigError, DataError

FloatArray: TypeAlias = NDArray[np.float64]


def advantages(scores: ArrayLike, baselines: ArrayLike) -> FloatArray:
    """[B] score less baseline (paper equation 8).

    Args:
        scores: [B] rewards mapped to [0, 1].
        baselines: [B] values read before any of these scores was folded.

    Raises:
        DataError: the shapes differ, or something is not finite.
    """
    return _vector(scores, "scores") - _vector(baselines, "baselines", size=int(np.size(scores)))


def normalise(values: ArrayLike, floor: float) -> FloatArray:
    """[B] (A - mean A) / max(std A, floor), over the whole batch (paper equation 9).

    The deviation is the unbiased one. A batch of one has neither a mean to subtract nor a deviation,
    so it is returned as it came. The floor: when nearly every episode of a batch succeeds, the
    deviation tends to zero and dividing by it would blow the few that differ up to large steps in
    directions that are mostly noise. A deviation of 0.1 is that of a batch with 1 % failures
    (sqrt(.01 * .99)); below it, advantages shrink with the deviation, so the updates fade out.

    Args:
        values: [B] advantages.
        floor: smallest deviation divided by, positive.

    Raises:
        ConfigError: the floor is not positive.
        DataError: an advantage is not finite.
    """
    if not floor > 0.0:
        raise ConfigError(f"estimator.deviation_floor = {floor} must be positive")
    array = _vector(values, "advantages")
    if len(array) < 2:
        return array
    centred = array - array.mean()
    return centred / max(float(array.std(ddof=1)), floor)


def group_statistics(scores: ArrayLike, groups: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """[B] mean, [B] unbiased deviation and [B] size of the group that each episode belongs to.

    The deviation of a group of one is 0.

    Args:
        scores: [B] rewards mapped to [0, 1].
        groups: [B] any integers; equal ones belong together.
    """
    array = _vector(scores, "scores")
    _, member_of = np.unique(_groups(groups, len(array)), return_inverse=True)
    size = np.bincount(member_of).astype(np.float64)
    mean = np.bincount(member_of, weights=array) / size
    squares = np.bincount(member_of, weights=(array - mean[member_of]) ** 2)
    deviation = np.sqrt(squares / np.maximum(size - 1.0, 1.0))
    return mean[member_of], deviation[member_of], size[member_of]


def grpo_advantages(scores: ArrayLike, groups: ArrayLike, *, floor: float | None) -> FloatArray:
    """[B] (score - group mean) / max(group deviation, floor): the GRPO reference.

    With rewards of 0 and 1 the smallest deviation above zero of a group of 8 is 0.35, so a floor of
    0.1 gives the published formula exactly; a group whose scores are all equal gets zeros.

    Args:
        scores: [B] rewards mapped to [0, 1].
        groups: [B] group of each episode. A group may have lost members to failures; an episode left
            alone in its group gets 0.
        floor: smallest deviation divided by; None subtracts the mean only.
    """
    mean, deviation, _ = group_statistics(scores, groups)
    centred = _vector(scores, "scores") - mean
    # A group of equal scores must give exact zeros, also where the mean of floats is off by a rounding.
    centred[~mixed_groups(scores, groups)] = 0.0
    if floor is None:
        return centred
    if not floor > 0.0:
        raise ConfigError(f"estimator.deviation_floor = {floor} must be positive")
    return centred / np.maximum(deviation, floor)


def mixed_groups(scores: ArrayLike, groups: ArrayLike) -> NDArray[np.bool_]:
    """[B] whether the scores of the episode's group differ: what dynamic sampling keeps.

    Args:
        scores: [B] rewards mapped to [0, 1].
        groups: [B] group of each episode.
    """
    array = _vector(scores, "scores")
    _, first, member_of = np.unique(_groups(groups, len(array)), return_index=True, return_inverse=True)
    differs = array != array[first[member_of]]
    return np.bincount(member_of, weights=differs.astype(np.float64))[member_of] > 0.0


class Estimator(Protocol):
    """Turns the scores of a batch into advantages."""

    @property
    def needs_baselines(self) -> bool:
        """Whether baselines must be given."""
        ...

    @property
    def group_size(self) -> int:
        """Episodes per prompt that belong together; 1 where no groups exist."""
        ...

    def __call__(
        self,
        scores: ArrayLike,
        *,
        baselines: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> FloatArray:
        """[B] advantages of a batch."""
        ...

    def keep(self, scores: ArrayLike, groups: ArrayLike | None = None) -> NDArray[np.bool_]:
        """[B] which episodes may be learned from (all, but for dynamic sampling)."""
        ...


@dataclass(frozen=True, slots=True)
class _Ungrouped:
    """What estimators without groups share: every episode is learned from."""

    floor: float | None
    """Smallest deviation divided by; None leaves advantages as they are."""
    group_size: int = 1

    def keep(self, scores: ArrayLike, groups: ArrayLike | None = None) -> NDArray[np.bool_]:
        """[B] all true."""
        return np.ones(np.size(scores), dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class SPOEstimator(_Ungrouped):
    """Score less the tracker's value, normalised over the batch."""

    needs_baselines: bool = True

    def __call__(
        self,
        scores: ArrayLike,
        *,
        baselines: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> FloatArray:
        """[B] advantages; `groups` is not looked at."""
        if baselines is None:
            raise DataError("the estimator 'spo' needs the baselines of the batch")
        raw = advantages(scores, baselines)
        return raw if self.floor is None else normalise(raw, self.floor)


@dataclass(frozen=True, slots=True)
class NoBaselineEstimator(_Ungrouped):
    """The score itself, normalised over the batch (the paper's ablation)."""

    needs_baselines: bool = False

    def __call__(
        self,
        scores: ArrayLike,
        *,
        baselines: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> FloatArray:
        """[B] advantages; neither `baselines` nor `groups` is looked at."""
        raw = _vector(scores, "scores")
        return raw if self.floor is None else normalise(raw, self.floor)


@dataclass(frozen=True, slots=True)
class GRPOEstimator:
    """Score less the mean of its group, divided by the group's deviation (reference only)."""

    group_size: int
    floor: float | None
    dynamic_sampling: bool = False
    needs_baselines: bool = False

    def __call__(
        self,
        scores: ArrayLike,
        *,
        baselines: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> FloatArray:
        """[B] advantages; `baselines` is not looked at."""
        return grpo_advantages(scores, self._checked(scores, groups), floor=self.floor)

    def keep(self, scores: ArrayLike, groups: ArrayLike | None = None) -> NDArray[np.bool_]:
        """[B] with dynamic sampling, which episodes belong to a group of different scores."""
        checked = self._checked(scores, groups)
        if not self.dynamic_sampling:
            return np.ones(np.size(scores), dtype=np.bool_)
        return mixed_groups(scores, checked)

    def _checked(self, scores: ArrayLike, groups: ArrayLike | None) -> ArrayLike:
        if groups is None:
            raise DataError("the estimator 'grpo' needs the group of every episode")
        _, sizes = np.unique(_groups(groups, int(np.size(scores))), return_counts=True)
        if len(sizes) and int(sizes.max()) > self.group_size:
            raise DataError(f"a group has {int(sizes.max())} episodes and `group_size` is {self.group_size}")
        return groups


def make_estimator(settings: EstimatorSettings) -> Estimator:
    """The estimator that the settings name.

    Raises:
        ConfigError: the group size does not fit the estimator, or a setting belongs to another one.
    """
    if not settings.deviation_floor > 0.0:
        raise ConfigError(f"estimator.deviation_floor = {settings.deviation_floor} must be positive")
    floor = settings.deviation_floor if settings.normalise == "batch" else None
    if settings.kind == "grpo":
        if settings.group_size < 2:
            raise ConfigError(
                f"estimator.kind = 'grpo' compares the episodes of a group and needs estimator.group_size "
                f"of at least 2, got {settings.group_size} (8 is usual)"
            )
        return GRPOEstimator(settings.group_size, floor, settings.dynamic_sampling)
    if settings.group_size != 1:
        raise ConfigError(
            f"estimator.kind = {settings.kind!r} takes one episode per prompt and needs "
            f"estimator.group_size = 1, got {settings.group_size}"
        )
    if settings.dynamic_sampling:
        raise ConfigError(
            f"estimator.dynamic_sampling needs groups (estimator.kind = 'grpo'), got {settings.kind!r}"
        )
    if settings.kind == "spo":
        return SPOEstimator(floor)
    if settings.kind == "no_baseline":
        return NoBaselineEstimator(floor)
    raise ConfigError(f"estimator.kind = {settings.kind!r} must be 'spo', 'grpo' or 'no_baseline'")


def _vector(values: ArrayLike, name: str, size: int | None = None) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or (size is not None and len(array) != size):
        raise DataError(f"{name} must be one number per episode, got the shape {array.shape}")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(f"{name}[{at}] is {array[at]}")
    return array


def _groups(groups: ArrayLike, size: int) -> NDArray[np.int64]:
    array = np.asarray(groups, dtype=np.int64)
    if array.shape != (size,):
        raise DataError(f"groups must be one integer per episode ({size}), got the shape {array.shape}")
    return array
