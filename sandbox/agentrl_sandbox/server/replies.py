"""Request ids: the same request sent twice is done once, and its reply is kept to be given again.

Knows nothing of HTTP, sessions or sandboxes: a request is an id, a digest of what was asked, and a coroutine
that ends with the bytes of a reply.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

_MOST_IDS = 100_000


class RequestConflict(Exception):
    """A request id was used again for something else."""


class ReplyForgotten(Exception):
    """The request was done, and its reply had to make room for later ones: doing it again would be wrong."""


@dataclass(slots=True)
class _Request:
    digest: bytes
    task: asyncio.Task[bytes] | None
    """None once the reply is forgotten."""
    size: int = 0
    done_at: float = 0.0


class ReplyStore:
    """Does each request once. Replies are kept for `keep_s` seconds, as far as `capacity` bytes hold them.

    A caller that goes away does not end the work: it goes on, so that the retry finds the reply. Requests
    that raise are forgotten at once (they are refusals such as a full queue: nothing was run, so asking again
    is right). Of a reply that had to go the id stays, so that a retry is refused instead of run again.
    """

    def __init__(self, *, keep_s: float, capacity: int) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._under_way: dict[str, _Request] = {}
        self._done: OrderedDict[str, _Request] = OrderedDict()  # oldest first
        self._whole: OrderedDict[str, _Request] = OrderedDict()  # those of them whose reply is kept
        self.bytes = 0
        self.replays = 0

    def __len__(self) -> int:
        return len(self._under_way) + len(self._done)

    def once(
        self, request_id: str, digest: bytes, work: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> asyncio.Task[bytes]:
        """The task that does, or did, this request. Await it shielded.

        Raises `RequestConflict`, `ReplyForgotten`.
        """
        self._forget_old()
        known = self._under_way.get(request_id) or self._done.get(request_id)
        if known is None:
            task = asyncio.create_task(work())
            self._under_way[request_id] = _Request(digest, task)
            task.add_done_callback(lambda done: self._finish(request_id, done))
            return task
        if known.digest != digest:
            raise RequestConflict(f"request id {request_id!r} was used before for another request")
        if known.task is None:
            raise ReplyForgotten(
                f"request {request_id!r} was done, and its reply is kept no longer: later ones took "
                f"its place ({self._capacity} bytes of them)"
            )
        self.replays += 1
        return known.task

    def _finish(self, request_id: str, task: asyncio.Task[bytes]) -> None:
        request = self._under_way.pop(request_id)
        # Asking for the exception also marks it as seen: the caller may be gone.
        if task.cancelled() or task.exception() is not None:
            return
        request.done_at, request.size = time.monotonic(), len(task.result())
        self._done[request_id] = self._whole[request_id] = request
        self.bytes += request.size
        while self.bytes > self._capacity:
            self._drop_reply(next(iter(self._whole)))

    def _drop_reply(self, request_id: str) -> None:
        request = self._whole.pop(request_id)
        request.task = None
        self.bytes -= request.size

    def _forget_old(self) -> None:
        oldest_kept = time.monotonic() - self._keep_s
        while self._done:
            request_id, request = next(iter(self._done.items()))
            if request.done_at >= oldest_kept and len(self._done) <= _MOST_IDS:
                return
            if request_id in self._whole:
                self._drop_reply(request_id)
            del self._done[request_id]

    def cancel(self, request_id: str) -> bool:
        """Ends the work of a request that is under way; false when there is none."""
        request = self._under_way.get(request_id)
        return request is not None and request.task is not None and request.task.cancel()

    async def close(self) -> None:
        """Ends everything under way and waits until it has ended."""
        tasks = [request.task for request in self._under_way.values() if request.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._done.clear()
        self._whole.clear()
        self.bytes = 0
