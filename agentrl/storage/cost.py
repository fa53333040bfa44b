"""What a run spent to get where it is, rollouts for initial values included.

Every report takes its numbers from here, so that none can leave the initial rollouts out. Read from the
rows of `metrics.jsonl`; knows nothing of how numbers are made or shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agentrl.storage.metrics import Row


@dataclass(frozen=True, slots=True)
class Cost:
    """Episodes, sampled tokens and wall time up to a policy version."""

    version: int = 0
    episodes: int = 0
    """Learned from."""
    tokens: int = 0
    """Sampled in training, learned from or not yet."""
    seconds: float = 0.0
    """All wall time, initial rollouts and evaluations included."""
    episodes_initial: int = 0
    tokens_initial: int = 0
    seconds_initial: float = 0.0

    @property
    def episodes_total(self) -> int:
        """Learned from, and played for initial values."""
        return self.episodes + self.episodes_initial

    @property
    def tokens_total(self) -> int:
        """Sampled in training and for initial values."""
        return self.tokens + self.tokens_initial

    def as_row(self) -> dict[str, Any]:
        """All numbers by name, totals among them."""
        totals = {"episodes_total": self.episodes_total, "tokens_total": self.tokens_total}
        return {**asdict(self), **totals}

    def sentence(self) -> str:
        """`250 episodes and 31,000 tokens, of them 50 and 6,000 for initial values (12 s)`."""
        text = f"{self.episodes_total:,} episodes and {self.tokens_total:,} tokens"
        if not self.episodes_initial:
            return text
        return (
            f"{text}, of them {self.episodes_initial:,} and {self.tokens_initial:,} for initial values "
            f"({self.seconds_initial:.0f} s)"
        )


def spent(rows: Sequence[Row], version: int | None = None) -> Cost:
    """What was spent up to a policy version, by default the last one."""
    initial: Row = next((row for row in rows if row.get("kind") == "initial"), {})
    step: Row = {}
    for row in rows:
        if row.get("kind") == "step" and (version is None or row["version"] <= version):
            step = row
    seconds_initial = float(initial.get("seconds") or 0.0)
    return Cost(
        version=int(step.get("version") or 0),
        episodes=int(step.get("episodes") or 0),
        tokens=int(step.get("tokens_generated") or 0),
        seconds=float(step.get("time_s") or seconds_initial),
        episodes_initial=int(initial.get("episodes") or 0),
        tokens_initial=int(initial.get("tokens") or 0),
        seconds_initial=seconds_initial,
    )
