"""Hands episodes to a rollout worker and takes them back, many in one call.

Episodes end in bursts, several after one decoding step, and each that ends makes room for another. One call
brings what begins and what is cancelled, waits on the worker until some have ended, and takes those along.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from agentrl.rollout.completer import Dispatch

LINGER_S = 0.005
"""Both sides wait so long for more to send, in seconds."""

Answer = tuple[str, Any]
"""("done", result), or the class and the text of an error: not every exception survives a process border."""
Start = tuple[int, Dispatch, int, Mapping[str, Any]]
"""Number of an episode, its dispatch, the number of its environment, its row."""
Ended = tuple[int, Answer]
"""Number of an episode, and the episode or why there is none."""


class Exchange:
    """The episodes of one worker, by numbers of their own.

    Args:
        call: `RolloutWorker.exchange`, there.
    """

    def __init__(self, call: Callable[[list[Start], list[int]], Awaitable[Sequence[Ended]]]) -> None:
        self._call = call
        self._numbers = itertools.count()
        self._begin: list[Start] = []
        self._cancel: list[int] = []
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._sending: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def play(self, dispatch: Dispatch, environment: int, row: Mapping[str, Any]) -> Answer:
        """Play an episode there; cancelling this cancels it there.

        Raises:
            Exception: a call has failed, and with it all episodes that are played there.
        """
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._begin.append((number, dispatch, environment, row))
        self._send_soon()
        try:
            return await self._waiting[number]
        finally:
            if self._waiting.pop(number, None) is not None:
                self._cancel.append(number)
                self._send_soon()

    def _send_soon(self) -> None:
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_later(LINGER_S, self._send)

    def _send(self) -> None:
        self._sending = None
        call = asyncio.ensure_future(self._exchange(self._begin, self._cancel))
        self._begin, self._cancel = [], []
        self._calls.add(call)
        call.add_done_callback(self._answered)

    async def _exchange(self, begin: list[Start], cancel: list[int]) -> None:
        try:
            ended = await self._call(begin, cancel)
        except Exception as error:  # each episode that is played there learns of it, whatever it is
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()
            return
        for number, answer in ended:
            future = self._waiting.pop(number, None)
            if future is not None and not future.done():  # else it was cancelled
                future.set_result(answer)

    def _answered(self, call: asyncio.Task[None]) -> None:
        """A newer call ends the one before: only the last one that is answered is followed by another."""
        self._calls.discard(call)
        if not self._calls and self._waiting and not call.cancelled():
            self._send_soon()

    def close(self) -> None:
        """Ask no more; what is played there is not cancelled."""
        if self._sending is not None:
            self._sending.cancel()
        for call in self._calls:
            call.cancel()
