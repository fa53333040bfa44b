"""Controllers: what changes numbers of a run between its steps, by what the steps show.

NumPy only. A controller knows nothing of how a number takes effect; `agentrl.training.control` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agentrl.algorithms.advantage import CreditBatch
from agentrl.config.ranges import Share


class Controller(Protocol):
    """Changes numeric settings between steps; what `controller.kind` names.

    Where it remembers something, it has `state_dict()` of plain values and arrays, and
    `load_state_dict(state)`: then a resumed run goes on as if it had not been interrupted.
    """

    controls: tuple[str, ...]
    """Settings that it changes, of `agentrl.training.control.CONTROLLABLE`."""

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """New values of some of the settings, from the next step on.

        Args:
            metrics: the row of the step.
            batch: its episodes, with baselines.
            values: of the settings it controls, in force during the step.
        """
        ...


class EffectiveShare:
    """Lowers the staleness while importance weights leave too few effective tokens, and raises it again."""

    controls = ("stream.staleness",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `effective_share`."""

        least: Share = 0.5
        """Effective sample size over the number of tokens, below which staleness falls."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """One version less or more; never more than the setting says."""
        share = metrics.get("effective_share")
        if share is None:
            return {}
        staleness = values["stream.staleness"]
        return {"stream.staleness": max(0, staleness - 1) if share < self._settings.least else staleness + 1}
