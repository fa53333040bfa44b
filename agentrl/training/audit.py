"""Is what is learned from biased against slow episodes? A standing comparison, logged with every step.

Episodes are matched by dispatch index: below the frontier (the lowest index still under way) the
fate of every dispatched episode is known, so what was learned from there is compared with all that was
dispatched there: tokens, turns, seconds, and the baseline of the prompt (difficulty). A rule that
learns from all it dispatches differs by exactly nothing; a first-finisher rule learns from
shorter and easier episodes. Knows nothing of why an episode was left out.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from agentrl.episode import Episode

MEASURES = ("tokens", "turns", "seconds", "baseline")


@dataclass(slots=True)
class _Record:
    tokens: float
    turns: float
    seconds: float
    baseline: float
    learned: bool = False


class BiasAudit:
    """Compares learned with dispatched episodes over a window of dispatch indices.

    Args:
        window: dispatch indices below the frontier that are looked at.
    """

    def __init__(self, window: int = 4096) -> None:
        self._window = window
        self._records: dict[int, _Record] = {}
        self._order: deque[int] = deque()

    def dispatched(self, episode: Episode, baseline: float) -> None:
        """An episode ended, learned from or not; `baseline` is the value of its prompt then."""
        self._records[episode.dispatch_index] = _Record(
            episode.num_sampled, len(episode.turns), episode.seconds, baseline
        )
        self._order.append(episode.dispatch_index)
        while len(self._order) > 4 * self._window:
            self._records.pop(self._order.popleft(), None)

    def learned(self, episode: Episode) -> None:
        """It was learned from."""
        record = self._records.get(episode.dispatch_index)
        if record is not None:
            record.learned = True

    def report(self, frontier: int) -> dict[str, float]:
        """Difference of means, learned less dispatched, relative to the dispatched mean; and the shares.

        Args:
            frontier: lowest dispatch index still under way (in flight or waiting for its batch).

        Returns:
            `bias_tokens`, `bias_turns`, `bias_seconds`, `bias_baseline` and `bias_z`, the largest
            difference in standard errors of the dispatched mean; `learned_share`. Empty while
            fewer than 32 episodes are below the frontier.
        """
        known = [
            record for index, record in self._records.items() if frontier - self._window <= index < frontier
        ]
        kept = [record for record in known if record.learned]
        if len(known) < 32 or not kept:
            return {}
        report = {"learned_share": len(kept) / len(known)}
        largest = 0.0
        for measure in MEASURES:
            values = [getattr(record, measure) for record in known]
            mean = sum(values) / len(values)
            difference = sum(getattr(record, measure) for record in kept) / len(kept) - mean
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
            report[f"bias_{measure}"] = difference / abs(mean) if mean else 0.0
            if deviation > 0.0:
                largest = max(largest, abs(difference) / (deviation / math.sqrt(len(kept))))
        report["bias_z"] = largest
        return report
