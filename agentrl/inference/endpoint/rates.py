"""Rates: how many tokens an endpoint may be sent in a minute."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque


class TokenRate:
    """At most `limit` tokens in any `period_s`: reserve before a request, correct after it."""

    def __init__(self, limit: int, period_s: float = 60.0) -> None:
        self._limit, self._period_s = limit, period_s
        self._entries: deque[list[float]] = deque()
        self._turn = asyncio.Lock()
        self._corrected = asyncio.Event()

    async def reserve(self, tokens: int) -> list[float]:
        """Wait until `tokens` fit; first come, first served. A larger request than the limit waits for
        an empty window."""
        async with self._turn:
            while True:
                now = time.monotonic()
                while self._entries and self._entries[0][0] <= now - self._period_s:
                    self._entries.popleft()
                used = sum(entry[1] for entry in self._entries)
                if not used or used + tokens <= self._limit:
                    entry = [now, float(tokens)]
                    self._entries.append(entry)
                    return entry
                self._corrected.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.001, self._entries[0][0] + self._period_s - now)):
                        await self._corrected.wait()

    def correct(self, entry: list[float], tokens: int) -> None:
        """Replace a reservation by what was really used; whoever waits looks again."""
        entry[1] = float(tokens)
        self._corrected.set()
