"""Numbers of a run that a controller may change between its steps: checked, kept, and handed on.

The numbers in force go into every step on disk, and the controller's state into the light state, so that a
resumed or replayed run sees the same ones. It knows nothing of what the numbers do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from agentrl.algorithms.advantage import CreditBatch
from agentrl.config import registry
from agentrl.config.ranges import check_ranges
from agentrl.config.settings import Settings
from agentrl.errors import AgentRLError, ConfigError, PartError

CONTROLLABLE = (
    "learner.learning_rate",
    "loss.entropy_coefficient",
    "loss.kl_coefficient",
    "stream.staleness",
)
"""Settings that can change between two steps."""

STALENESS = "stream.staleness"


class Control:
    """The controller of a run, if it has one, and the numbers in force.

    Args:
        settings: of the run.

    Raises:
        ConfigError: the controller changes something that it cannot change in this run.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._kind = settings, settings.controller.kind
        self._part: Any = None
        controls: tuple[str, ...] = ()
        if self._kind != "none":
            self._part = registry.make("controller", self._kind, settings.controller.own)
            controls = tuple(getattr(self._part, "controls", ()))
            self._check(controls)
        self.values: dict[str, float] = {name: self._setting(name) for name in controls}
        """By name of the setting; only of those that are controlled."""

    def act(self, metrics: Mapping[str, Any], batch: CreditBatch) -> None:
        """A step was learned: the controller may change the numbers of the next.

        Raises:
            PartError: it raised, or gave what is no value of a setting that it controls.
        """
        if self._part is None:
            return
        with registry.blame("controller", self._kind):
            given = dict(self._part(metrics, batch, dict(self.values)))
        for name, value in given.items():
            self.values[name] = self._checked(name, value)

    def learner_options(self, values: Mapping[str, float]) -> dict[str, Any]:
        """What the learner is told of some numbers in force."""
        own = {name: value for name, value in values.items() if name != STALENESS}
        return {"controls": own} if own else {}

    def staleness(self, otherwise: int) -> int:
        """The staleness in force."""
        return int(self.values.get(STALENESS, otherwise))

    def state_dict(self) -> dict[str, Any]:
        """Numbers in force, what the settings said of them, and what the controller remembers."""
        remembers = getattr(self._part, "state_dict", dict)
        return {
            "values": dict(self.values),
            "settings": {name: self._setting(name) for name in self.values},
            "part": remembers(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; a setting that was changed since begins at what it is now.

        Then the controller begins anew: what it remembers led to the old number.
        """
        same = {name for name in self.values if state["settings"].get(name) == self._setting(name)}
        self.values |= {name: self._checked(name, state["values"][name]) for name in same}
        if same == set(self.values) and state["part"] and hasattr(self._part, "load_state_dict"):
            self._part.load_state_dict(state["part"])

    def _setting(self, name: str) -> float:
        section, _, field = name.partition(".")
        return getattr(getattr(self._settings, section), field)

    def _check(self, controls: tuple[str, ...]) -> None:
        settings, where = self._settings, f"the controller {self._kind!r}"
        unknown = [name for name in controls if name not in CONTROLLABLE]
        if unknown or not controls:
            raise ConfigError(
                f"{where} needs an attribute `controls` with names among {', '.join(CONTROLLABLE)}; it has "
                f"{unknown or controls!r}"
            )
        if STALENESS in controls and settings.stream.stale_policy == "wait":
            raise ConfigError(
                f"{where} steers {STALENESS}, a soft bound then; it needs stream.stale_policy = 'correct'"
            )
        if STALENESS in controls and settings.run.deterministic:
            raise ConfigError(f"{where} steers {STALENESS}, which is 0 where run.deterministic = true")
        if "loss.kl_coefficient" in controls and not settings.loss.kl_coefficient:
            raise ConfigError(
                f"{where} steers loss.kl_coefficient, and the run keeps no reference weights: begin with a "
                "value above 0"
            )

    def _checked(self, name: str, value: Any) -> float:
        where = f"the controller {self._kind!r} gave {name} = {value!r}"
        if name not in self.values:
            raise PartError(f"{where}; it controls {', '.join(self.values)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise PartError(f"{where}; it must be a finite number")
        if name == STALENESS:
            # What is in flight was planned for the setting; below the least no batch could fill.
            least = self._settings.learner.publish_every - 1
            return max(least, min(int(value), self._settings.stream.staleness))
        section, _, field = name.partition(".")
        try:
            changed = dataclasses.replace(getattr(self._settings, section), **{field: float(value)})
            check_ranges(changed, section)
        except AgentRLError as error:
            raise PartError(f"{where}: {error}") from error
        return float(value)
