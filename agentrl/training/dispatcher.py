"""Keeps N episodes in flight and hands each finished one on exactly once.

Named invariant, *exactly once*: every episode that was started leaves by exactly one of `finished`,
`failed` and `cancelled` of its `Stream`, in the event loop, before its slot is filled again. Slots
are refilled one by one; nothing waits for a batch, and nothing waits for another episode. It knows
nothing of rewards, versions, losses or files: those are the stream's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentrl.episode import Episode
from agentrl.errors import StallError
from agentrl.rollout.token_completer import Dispatch

STOP_LIMIT_S = 60.0
"""Longest wait for cancelled episodes to clean up."""


class Stream(Protocol):
    """Where episodes come from and where they go."""

    def next(self) -> Dispatch | None:
        """The next episode to start, or None when nothing may be started now."""
        ...

    def finished(self, episode: Episode) -> None:
        """An episode ended with a reward."""
        ...

    def failed(self, episode: Episode) -> None:
        """An episode ended without a reward: machinery broke."""
        ...

    def cancelled(self, dispatch: Dispatch) -> None:
        """An episode was cancelled by `Dispatcher.stop`, or did not end in spite of it."""
        ...


class Dispatcher:
    """Runs episodes of a stream, `limit` at once.

    Args:
        stream: where episodes come from and go.
        play: plays one episode; returns it failed or not, raises only CancelledError.
        limit: most episodes in flight.
    """

    def __init__(self, stream: Stream, play: Callable[[Dispatch], Awaitable[Episode]], limit: int) -> None:
        self._stream = stream
        self._play = play
        self._limit = limit
        self._tasks: dict[asyncio.Task[Episode], Dispatch] = {}
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._stopping = False
        self._broken: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Episodes in flight."""
        return len(self._tasks)

    def indices(self) -> list[int]:
        """Dispatch indices of the episodes in flight."""
        return [dispatch.dispatch_index for dispatch in self._tasks.values()]

    def wake(self) -> None:
        """Look again whether episodes may be started: a version was published, a prompt came back."""
        self._wake.set()

    async def run(self) -> None:
        """Start episodes until `stop`, as fast as the stream gives them.

        Raises:
            BaseException: what the stream raised while it took an episode (a full disk, for example).
        """
        while not self._stopping:
            self._wake.clear()
            while not self._stopping and self.in_flight < self._limit:
                dispatch = self._stream.next()
                if dispatch is None:
                    break
                self._start(dispatch)
            await self._wake.wait()
            if self._broken is not None:
                raise self._broken

    def _start(self, dispatch: Dispatch) -> None:
        task = asyncio.ensure_future(self._play(dispatch))
        self._tasks[task] = dispatch
        self._empty.clear()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Episode]) -> None:
        dispatch = self._tasks.pop(task, None)
        if dispatch is None:
            return  # left behind by `stop`, which has told the stream
        try:
            if task.cancelled():
                self._stream.cancelled(dispatch)
            elif (error := task.exception()) is not None:
                # `play` turns every failure into an episode; what it raises is a bug and stops the run.
                self._broken = error
            else:
                episode = task.result()
                (self._stream.finished if episode.failure is None else self._stream.failed)(episode)
        except BaseException as error:  # handed to `run`, which raises it
            self._broken = error
        if not self._tasks:
            self._empty.set()
        self._wake.set()

    async def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Start nothing more and cancel what is in flight; returns when all of it has left.

        Raises:
            StallError: some episodes did not end within the limit; they are left behind.
        """
        self._stopping = True
        self._wake.set()
        for task in list(self._tasks):
            task.cancel()
        try:
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError as error:
            left = list(self._tasks.values())
            self._tasks.clear()
            self._empty.set()
            for dispatch in left:
                self._stream.cancelled(dispatch)
            names = ", ".join(dispatch.episode_id for dispatch in left[:8]) + (", ..." if left[8:] else "")
            owner = f"{len(left)} cancelled episodes to end ({names})"
            raise StallError(owner, limit_s, "an environment or a tool swallows its cancellation") from error
