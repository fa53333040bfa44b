"""Controllers that follow how well the run does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from agentrl.algorithms.advantage import CreditBatch, given_baselines
from agentrl.config.part import Part
from agentrl.config.ranges import Positive, Range
from agentrl.errors import DataError


class AccuracyKL(Part["AccuracyKL.Settings"]):
    """Coefficient of the divergence: coefficient (tanh(accuracy) + 1) / 2 of the batch (FG-ExPO's AKL).

    From a half of it at accuracy 0 to .88 of it at 1: who fails is held less tightly. The opposite sign is
    easily written.

    Source: arXiv 2605.11403 (AKL), text read, complete.
    """

    controls = ("loss.kl_coefficient",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `accuracy_kl`."""

        coefficient: Positive = 0.02
        """beta of the paper; `loss.kl_coefficient` is that of the first step."""

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """The coefficient of the next step."""
        accuracy = float(batch.scores.mean())
        return {"loss.kl_coefficient": self.settings.coefficient * (math.tanh(accuracy) + 1.0) / 2.0}


class ImprovementGate:
    """Learning rate times how far the newest batch is above the mean of those before it, in deviations (after
    PIPO).

    xi = (m - mean) / deviation over a window of batches, m being the mean of score less value: with draws by
    difficulty the mean score moves for reasons of drawing. The rate is rate x clip(1 + xi / 2, least, most).
    The paper applies the *previous* batch once more, its advantages times xi, and only where xi is positive;
    here the next step is scaled.

    Source: arXiv 2604.00860, code read (window 8, xi within +-2); applied to the learning rate here.
    """

    controls = ("learner.learning_rate",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `improvement_gate`."""

        rate: Positive = 1e-6
        """Learning rate at no improvement; `learner.learning_rate` is that of the first steps."""
        window: Annotated[int, Range(least=2)] = 8
        """Batches that the newest one is compared with; before so many were seen nothing is changed."""
        least: Positive = 0.25
        """Smallest factor."""
        most: Positive = 2.0
        """Largest factor."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._before: list[float] = []

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """The learning rate of the next step."""
        settings = self._settings
        newest = float((batch.scores - given_baselines(batch)).mean())
        factor = gate(newest, self._before) if len(self._before) >= settings.window else None
        self._before = [*self._before, newest][-settings.window :]
        if factor is None:
            return {}
        bounded = min(max(factor, settings.least), settings.most)
        return {"learner.learning_rate": settings.rate * bounded}

    def state_dict(self) -> dict[str, Any]:
        """Means of the batches of the window."""
        return {"before": list(self._before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self._before = [float(value) for value in state["before"]]


def gate(newest: float, before: Sequence[float]) -> float:
    """1 + xi / 2, xi = (newest - mean) / deviation within +-2; 1 where the batches before were all alike.

    Raises:
        DataError: there are no batches before.
    """
    if not before:
        raise DataError("the newest batch is compared with those before it, and there are none")
    mean = sum(before) / len(before)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in before) / len(before))
    xi = (newest - mean) / deviation if deviation > 1e-9 else 0.0
    return 1.0 + min(max(xi, -2.0), 2.0) / 2.0
