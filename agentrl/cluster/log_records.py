"""Warnings of a process elsewhere, on their way to the run's own log."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

MOST = 200
"""Records that are kept until somebody takes them; the oldest go first."""
Told: TypeAlias = tuple[str, int, str]
"""Logger, level, and what was said."""


class LogRecords(logging.Handler):
    """Keeps what this process logs from warnings on; `take` it along with an answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: deque[Told] = deque(maxlen=MOST)
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as text; the log of the process has it too, for one that dies before it is asked."""
        text = self.format(record)
        self._records.append((record.name, record.levelno, text))
        sys.stderr.write(f"{text}\n")

    def take(self) -> list[Told]:
        """What was logged since the last call."""
        return [self._records.popleft() for _ in range(len(self._records))]


def log_again(who: str, records: Sequence[Told]) -> None:
    """Log what another process said, with its name."""
    for name, level, text in records:
        logging.getLogger(name).log(level, "%s: %s", who, text)
