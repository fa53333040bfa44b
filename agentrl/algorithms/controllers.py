"""Controllers: what changes numbers of a run between its steps, by what the steps show.

NumPy only. A controller knows nothing of how a number takes effect; `agentrl.training.control` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from agentrl.algorithms.advantage import CreditBatch
from agentrl.config.part import Part
from agentrl.config.ranges import Amount, Positive, Range, Share


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


class EffectiveShare(Part["EffectiveShare.Settings"]):
    """Lowers the staleness while importance weights leave too few effective tokens, and raises it again."""

    controls = ("stream.staleness",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `effective_share`."""

        least: Share = 0.5
        """Effective sample size over the number of tokens, below which staleness falls."""

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """One version less or more; never more than the setting says."""
        share = metrics.get("effective_share")
        if share is None:
            return {}
        staleness = values["stream.staleness"]
        return {"stream.staleness": max(0, staleness - 1) if share < self.settings.least else staleness + 1}


class TargetKL(Part["TargetKL.Settings"]):
    """Holds the divergence from the first weights near a target, by its coefficient (RLHF's adaptive KL).

    coefficient x (1 + gain clip(KL / target - 1, -.2, .2)) after each step: at most a fiftieth of it more or
    less with the gain as it is. `loss.kl_coefficient` is that of the first step. The bounds are ours: KL is 0
    when a run begins, and without them the coefficient would have sunk beyond return when it is needed.

    Source: arXiv 1909.08593, section 2.2, as its code has it (there the gain is episodes over a horizon).
    """

    controls = ("loss.kl_coefficient",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `target_kl`."""

        target: Positive = 0.01
        """Divergence of the policy from the first weights, in nats a token."""
        gain: Annotated[float, Range(above=0, below=5)] = 0.1
        """Change of the coefficient, as a share of it, for each 100 % that the divergence is off."""
        least: Positive = 1e-3
        """Smallest coefficient."""
        most: Positive = 1.0
        """Largest coefficient."""

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """The coefficient of the next step."""
        settings = self.settings
        error = min(max(metrics["kl_reference"] / settings.target - 1.0, -0.2), 0.2)
        moved = values["loss.kl_coefficient"] * (1.0 + settings.gain * error)
        return {"loss.kl_coefficient": min(max(moved, settings.least), settings.most)}


class TargetEntropy:
    """Keeps the entropy from falling below a target, by the coefficient of its bonus.

    c rises by `step` after a step whose entropy is below the target and falls by it after one above, never
    below 0; the coefficient is c below the target and 0 above, so nothing pushes a policy that is unsure.

    Source: arXiv 2505.22312 (Skywork-OR1, adaptive entropy control), rule and constants as they are commonly
    given.
    """

    controls = ("loss.entropy_coefficient",)

    @dataclass(frozen=True, slots=True)
    class Settings:
        """Settings of `target_entropy`."""

        target: Amount = 0.2
        """Entropy, in nats a token."""
        step: Positive = 0.005
        """What c changes by after each step."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._c: float | None = None

    def __call__(
        self, metrics: Mapping[str, Any], batch: CreditBatch, values: Mapping[str, float]
    ) -> Mapping[str, float]:
        """The coefficient of the next step."""
        settings, below = self._settings, metrics["entropy"] < self._settings.target
        c = values["loss.entropy_coefficient"] if self._c is None else self._c
        self._c = max(0.0, c + settings.step if below else c - settings.step)
        return {"loss.entropy_coefficient": self._c if below else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """What the coefficient is while the entropy is below the target."""
        return {"c": self._c}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self._c = state["c"]
