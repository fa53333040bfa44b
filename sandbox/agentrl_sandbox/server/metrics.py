"""Counters of a sandbox server and their Prometheus text form. Knows nothing of what is counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import ClassVar

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PREFIX = "agentrl_sandbox_"


class Histogram:
    """Counts observations below fixed bounds, in seconds."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Adds one observation."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        """The cumulative buckets, the sum and the count."""
        lines, total = [], 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{"+Inf" if bound is None else format(bound, "g")}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.9g}", f"{name}_count {total}"]


class Metrics:
    """Everything a server counts. Gauges are given at the moment of asking."""

    _HELP: ClassVar[dict[str, str]] = {
        "runs_total": "programs run, by outcome",
        "rejected_total": "requests refused, by reason",
        "sessions_opened_total": "sessions opened",
        "leases_expired_total": "sessions closed because nobody used them",
        "run_seconds": "wall time of programs, without the queue",
        "queue_seconds": "time from a request to its turn",
    }

    def __init__(self) -> None:
        self.sessions_opened = 0
        self.leases_expired = 0
        self.run_seconds = Histogram()
        self.queue_seconds = Histogram()
        self._runs: dict[str, int] = {}
        self._rejected: dict[str, int] = {}

    def count_run(self, status: str, wall_s: float, queue_s: float) -> None:
        """One program has ended with `status`."""
        self._runs[status] = self._runs.get(status, 0) + 1
        self.run_seconds.observe(wall_s)
        self.queue_seconds.observe(queue_s)

    def count_rejected(self, reason: str) -> None:
        """One request was refused."""
        self._rejected[reason] = self._rejected.get(reason, 0) + 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """The Prometheus text format, version 0.0.4."""
        lines: list[str] = []

        def head(name: str, kind: str, help_text: str) -> str:
            lines.append(f"# HELP {PREFIX}{name} {help_text}")
            lines.append(f"# TYPE {PREFIX}{name} {kind}")
            return PREFIX + name

        for name, label, counts in (
            ("runs_total", "status", self._runs),
            ("rejected_total", "reason", self._rejected),
        ):
            full = head(name, "counter", self._HELP[name])
            lines.extend(f'{full}{{{label}="{key}"}} {value}' for key, value in sorted(counts.items()))
        for name, value in (
            ("sessions_opened_total", self.sessions_opened),
            ("leases_expired_total", self.leases_expired),
        ):
            lines.append(f"{head(name, 'counter', self._HELP[name])} {value}")
        for name, histogram in (("run_seconds", self.run_seconds), ("queue_seconds", self.queue_seconds)):
            lines.extend(histogram.lines(head(name, "histogram", self._HELP[name])))
        for name, value in gauges.items():
            lines.append(f"{head(name, 'gauge', name.replace('_', ' '))} {value:g}")
        return "\n".join(lines) + "\n"
