"""Live progress of a run in the terminal, from the rows of its metrics.

In a terminal one block of lines is drawn again and again; elsewhere (a file, a pipe, a cluster's log)
plain lines are printed, a few dozen in a whole run. Knows nothing of where rows come from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from agentrl.report.health import FAILED_SHARE
from agentrl.report.run_data import describe_outage, duration, interval_text
from agentrl.storage.metrics import Row

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_EVERY_S = 10.0
"""Plain lines: at most one step in so many seconds, and the first and every tenth one."""


def sparkline(values: list[float], width: int = 48) -> str:
    """Values in [0, 1] as blocks, the newest at the right; older ones are averaged into `width`."""
    if not values:
        return ""
    width = min(width, len(values))
    blocks = []
    for column in range(width):
        part = values[column * len(values) // width : (column + 1) * len(values) // width]
        mean = sum(part) / len(part)
        blocks.append(BLOCKS[min(len(BLOCKS) - 1, int(max(0.0, mean) * len(BLOCKS)))])
    return "".join(blocks)


def step_line(row: Row) -> str:
    """One learner step in one plain line."""
    ages = "/".join(f"{age}:{count}" for age, count in (row.get("staleness") or {}).items())
    parts = (
        f"version {row['version']:>4}",
        f"reward {_value(row, 'reward_mean', '.3f')}",
        f"baseline {_value(row, 'baseline_mean', '.3f')}",
        f"calls/episode {_value(row, 'tool_calls_mean', '.2f')}",
        f"entropy {_value(row, 'entropy', '.3f')}",
        f"stale {ages}",
        f"{_value(row, 'generate_tokens_per_s', ',.0f')} tok/s",
        duration(row.get("time_s") or 0.0),
        *_troubles(row),
    )
    return "  ".join(parts)


def _troubles(row: Row) -> Iterator[str]:
    """What is paused and how many prompts are set aside, by environment."""
    for name, boundary in (row.get("paused") or {}).items():
        yield f"{name} paused ({boundary})"
    for name, count in (row.get("set_aside") or {}).items():
        yield f"{name}: {count} set aside"
    if (share := row.get("failed_share") or 0.0) > FAILED_SHARE:
        yield f"{share:.0%} of the episodes failed, the first one: {row.get('first_failure') or '':.300}"


def evaluation_line(row: Row) -> str:
    """One evaluation in one plain line."""
    parts = (row.get("environments") or {}).items()
    each = "".join(f"; {name} {_value(part, 'reward_mean', '.3f')}" for name, part in parts)
    return (
        f"evaluation at version {row['version']}: reward {_value(row, 'reward_mean', '.3f')} "
        f"({interval_text(row)}, {row.get('episodes', 0)} held-out episodes){each}"
    )


def _value(row: Row, name: str, form: str) -> str:
    value = row.get(name)
    return "-" if value is None else format(value, form)


class QuietProgress:
    """Shows nothing."""

    def row(self, row: Row) -> None:
        """Take a row of metrics."""

    def line(self, text: str) -> None:
        """Take a line about the run."""


class Pace:
    """How far something of known size is, and when it will be done at the pace so far."""

    def __init__(self) -> None:
        self._row: Row = {}
        self._began, self._first = 0.0, 0

    def take(self, row: Row, now: float) -> None:
        """Take a row of progress."""
        if row["name"] != self._row.get("name"):
            self._began, self._first = now, row["done"]
        self._row = row

    def line(self, now: float) -> str:
        """`initial rollouts: 120 of 2,000, about 12 min to go`."""
        done, total = self._row["done"], self._row["total"]
        if not total:
            return f"{self._row['name']}: {done:,} episodes"
        text = f"{self._row['name']}: {done:,} of {total:,}"
        if done > self._first and done < total:
            left_s = (now - self._began) / (done - self._first) * (total - done)
            text += f", about {duration(left_s)} to go"
        return text


class PlainProgress:
    """Plain lines for logs."""

    def __init__(self, stream: IO[str] | None = None, *, every_s: float = PLAIN_EVERY_S) -> None:
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._last = float("-inf")
        self._pace = Pace()

    def line(self, text: str) -> None:
        """Print one line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def row(self, row: Row) -> None:
        """Print what a row says, unless a step or progress was printed just before."""
        now = time.monotonic()
        text = describe(row)
        if row["kind"] == "progress":
            self._pace.take(row, now)
            if now - self._last >= self._every_s:
                self._last = now
                self.line(self._pace.line(now))
            return
        if text is None:
            return
        if row["kind"] == "step":
            if row["version"] % 10 not in (0, 1) and now - self._last < self._every_s:
                return
            self._last = now
        self.line(text)


def describe(row: Row) -> str | None:
    """One plain line for a row; None for rows that are not worth one."""
    match row["kind"]:
        case "step":
            return step_line(row)
        case "eval":
            return evaluation_line(row)
        case "initial":
            if row.get("file"):
                return f"initial values of {row.get('prompts', 0):,} prompts from {row['file']}"
            return (
                f"initial values from {row.get('episodes', 0):,} rollouts, {row.get('tokens', 0):,} tokens: "
                f"mean score {_value(row, 'score_mean', '.3f')} in {duration(row.get('seconds') or 0.0)}"
            )
        case "phase":
            total = row.get("total")
            return f"{row['name']}{f' ({total:,} episodes)' if total else ''} ..."
        case "left_out":
            first, reason = next(iter(row["rows"].items()))
            return (
                f"{len(row['rows'])} prompts cannot be played as they are, the first one: {first}: {reason}"
            )
        case "outage":
            return describe_outage(row)
        case "forgiven":
            each = ", ".join(f"{count} of {name}" for name, count in row["environments"].items())
            return f"prompts that were set aside are drawn again: {each}"
    return None


class LiveProgress:
    """A block of lines that is drawn anew with every row."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._notes: list[str] = []
        self._phase = "starting ..."
        self._rewards: list[float] = []
        self._evaluations: list[Row] = []
        self._step: Row | None = None
        self._initial: Row = {}
        self._started = time.monotonic()
        self._pace = Pace()

    def line(self, text: str) -> None:
        """Keep a line about the run above the curve."""
        self._notes.append(text)

    def row(self, row: Row) -> None:
        """Take a row of metrics."""
        kind = row["kind"]
        if kind == "step":
            self._step, self._phase = row, "learning"
            if row.get("score_mean") is not None:
                self._rewards.append(row["score_mean"])
        elif kind == "eval":
            self._evaluations.append(row)
            self._phase = "learning"
        elif kind == "initial":
            self._initial = row
            self._notes.append(describe(row) or "")
        elif kind == "forgiven":
            self._notes.append(describe(row) or "")
        elif kind in ("phase", "outage"):
            self._phase = describe(row) or ""
        elif kind == "progress":
            self._pace.take(row, time.monotonic())
            self._phase = self._pace.line(time.monotonic())

    def __rich__(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", justify="right")
        grid.add_column()
        for note in self._notes:
            grid.add_row("", Text(note, style="dim"))
        for evaluation in self._evaluations[:1] + self._evaluations[1:][-2:]:
            grid.add_row("evaluation", Text(evaluation_line(evaluation).removeprefix("evaluation ")))
        for name, text in self._step_lines():
            grid.add_row(name, text)
        elapsed = duration(time.monotonic() - self._started)
        grid.add_row(elapsed, Text(self._phase, style="bold"))
        return grid

    def _step_lines(self) -> Iterator[tuple[str, Any]]:
        from rich.text import Text

        row = self._step
        if row is None:
            return
        curve, score = sparkline(self._rewards), f" {self._rewards[-1]:.3f}" if self._rewards else ""
        ages = ", ".join(f"{count} at {age}" for age, count in (row.get("staleness") or {}).items())
        volume = (
            f"{row['version']}",
            f"episodes {row.get('episodes', 0) + self._initial.get('episodes', 0):,}",
            f"tokens {row.get('tokens_generated', 0) + self._initial.get('tokens', 0):,}",
            f"{_value(row, 'generate_tokens_per_s', ',.0f')} tok/s",
        )
        policy = (
            f"entropy {_value(row, 'entropy', '.3f')}",
            f"calls/episode {_value(row, 'tool_calls_mean', '.2f')}",
            f"baseline {_value(row, 'baseline_mean', '.3f')}",
            f"drift {_value(row, 'drift', '.4f')}",
        )
        yield "score", Text.assemble((curve, "green"), score)
        yield "version", Text("   ".join(volume))
        yield "staleness", Text(f"{ages}   in flight {row.get('in_flight', 0)}")
        yield "policy", Text("   ".join(policy))
        if troubles := list(_troubles(row)):
            yield "failures", Text("   ".join(troubles), style="red")


@contextmanager
def progress(
    *, quiet: bool = False, console: Console | None = None
) -> Iterator[QuietProgress | PlainProgress | LiveProgress]:
    """Progress for as long as the block lasts: live in a terminal, plain lines elsewhere, or nothing.

    Yields an object with `row(row)`, a listener of metrics, and `line(text)`.
    """
    if quiet:
        yield QuietProgress()
        return
    from rich.console import Console

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(console.file)
        return
    from rich.live import Live

    live = LiveProgress(console)
    with Live(live, console=console, refresh_per_second=4, transient=False):
        yield live
