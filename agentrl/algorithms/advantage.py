"""From scores to advantages, of whole episodes or of each token.

Pure functions over a batch of B episodes, and the estimators a run can choose from. This module knows
nothing of how values are tracked, how episodes are drawn, or what the loss does with an advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrl.config.part import Part
from agentrl.config.ranges import Positive
from agentrl.episode import Episode
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


@dataclass(frozen=True, slots=True)
class CreditBatch:
    """What an estimator sees of a batch of B episodes."""

    scores: FloatArray
    """[B] rewards mapped to [0, 1]."""
    baselines: FloatArray | None = None
    """[B] values of the prompts, read before any of these scores was folded."""
    counts: FloatArray | None = None
    """[B] effective counts of those values."""
    groups: NDArray[np.int64] | None = None
    """[B] equal for episodes of one group; None where there are no groups."""
    episodes: Sequence[Episode] = ()
    """[B] the episodes, with their turns and token ids."""


Advantages: TypeAlias = FloatArray | Sequence[Sequence[ArrayLike]]
"""[B], one number for all tokens of an episode; or, of each episode and segment, [T], one for each token."""


class Estimator(Protocol):
    """Turns a batch into advantages.

    It may have a method `keep(batch)`, which says of a unit (an episode, or the episodes of a group) by [B]
    booleans whether it is learned from; a unit that is not is drawn again.
    """

    def __call__(self, batch: CreditBatch) -> Advantages:
        """[B] advantages, or one for each token: of each episode and segment [T]."""
        ...


class Normalising(Part["Normalising.Settings"]):
    """An estimator whose settings say whether its advantages are normalised over the batch."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Of each estimator that normalises over the batch."""

        normalise: Literal["batch", "none"] = "batch"
        """Subtract the mean of the batch and divide by its deviation, or leave advantages as they are."""
        deviation_floor: Positive = 0.1
        """Smallest deviation divided by, so that a nearly solved batch is not blown up to unit noise."""

    def _normalised(self, raw: FloatArray) -> FloatArray:
        """[B] advantages as the settings want them, from raw ones [B]."""
        settings = self.settings
        return normalise(raw, settings.deviation_floor) if settings.normalise == "batch" else raw


class SPOEstimator(Normalising):
    """Score less the tracker's value, normalised over the batch (SPO).

    Source: arXiv 2509.13232, equations 8 and 9; text and code read.
    """

    requires = ("baselines",)

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs baselines."""
        return self._normalised(advantages(batch.scores, given_baselines(batch)))


class NoBaselineEstimator(Normalising):
    """The score itself, normalised over the batch: REINFORCE++, and the ablation of SPO's paper.

    Source: arXiv 2509.13232 (appendix E), text read; arXiv 2501.03262, a third party's description read.
    """

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages."""
        return self._normalised(_vector(batch.scores, "scores"))


class GRPOEstimator:
    """Score less the mean of its group, divided by the group's deviation (GRPO); undivided it is Dr. GRPO's.

    Source: arXiv 2402.03300; dynamic sampling arXiv 2503.14476 (DAPO); undivided arXiv 2503.20783 (Dr. GRPO).
    Formulas as they are commonly given.
    """

    requires = ("groups",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `grpo`."""

        normalise: Literal["batch", "none"] = "batch"
        """Divide by the deviation of the group, or subtract its mean only."""
        deviation_floor: Positive = 0.1
        """Smallest deviation divided by; that of 8 rewards of 0 and 1 which differ is at least 0.35."""
        dynamic_sampling: bool = False
        """Groups whose rewards are all equal are not learned from, and are drawn again (arXiv 2503.14476)."""

    def __init__(self, settings: Settings) -> None:
        self._floor = settings.deviation_floor if settings.normalise == "batch" else None
        self.keep = _keep_mixed if settings.dynamic_sampling else None

    def __call__(self, batch: CreditBatch) -> FloatArray:
        """[B] advantages; needs groups."""
        return grpo_advantages(batch.scores, given_groups(batch), floor=self._floor)


def _keep_mixed(batch: CreditBatch) -> NDArray[np.bool_]:
    """[B] which episodes belong to a group of different scores."""
    return mixed_groups(batch.scores, given_groups(batch))


def given_groups(batch: CreditBatch) -> NDArray[np.int64]:
    """[B] the groups of a batch.

    Raises:
        DataError: it has none.
    """
    if batch.groups is None:
        raise DataError("the estimator needs the group of every episode")
    return batch.groups


def given_baselines(batch: CreditBatch) -> FloatArray:
    """[B] the baselines of a batch.

    Raises:
        DataError: it has none.
    """
    if batch.baselines is None:
        raise DataError("the estimator needs the baselines of the batch")
    return batch.baselines


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
