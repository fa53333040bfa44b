"""How far a run is: what its clock, its checkpoints, its steps on disk, its log and the way back share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.cluster.cpu_time import cpu_seconds
from agentrl.storage.metrics import Totals


@dataclass(slots=True)
class Progress:
    """Counters and marks of one run, over all its attempts."""

    version: int = 0
    """Of the policy: learner steps taken."""
    attempt: int = 1
    initialised: bool = False
    """Initial values are set."""
    begun: bool = False
    """And the first evaluation is done: steps may follow."""
    due: bool = False
    """What follows the newest step (evaluation, weights, checkpoint) is not done yet."""
    evaluations: int = 0
    tokens: int = 0
    """Sampled in training, learned from or not; the ledger says which since a step, so light state has it."""
    totals: Totals = field(default_factory=Totals)
    earlier_s: float = 0.0
    """Wall seconds of earlier attempts."""
    earlier_cpu_s: float = 0.0
    """Processor seconds of earlier attempts."""
    _started: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """The wall time of this attempt counts from now."""
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        """Wall seconds over all attempts."""
        return self.earlier_s + time.monotonic() - self._started

    def cpu_s(self) -> float:
        """Processor seconds over all attempts."""
        return self.earlier_cpu_s + cpu_seconds()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, but for the attempt and the tokens, which the ledger knows."""
        plain = ("version", "initialised", "begun", "due", "evaluations")
        return {
            **{name: getattr(self, name) for name in plain},
            "totals": self.totals.state_dict(),
            "elapsed_s": self.elapsed_s(),
            "cpu_s": self.cpu_s(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to saved values; their time is an earlier attempt's."""
        values = dict(state)
        self.totals.load_state_dict(values.pop("totals"))
        self.earlier_s, self.earlier_cpu_s = values.pop("elapsed_s"), values.pop("cpu_s")
        for name, value in values.items():
            setattr(self, name, value)
