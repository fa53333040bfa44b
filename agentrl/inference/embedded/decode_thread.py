"""Runs a `BatchDecoder` in a thread of its own, for callers on event loops.

Callers put commands into an inbox that the thread empties between two steps; while there is nothing
to decode it sleeps on the inbox. Whatever breaks the thread fails every caller, so that nobody
waits for a thread that is gone. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from agentrl.errors import PolicyUnavailable
from agentrl.inference.embedded.batch_decoder import BatchDecoder
from agentrl.inference.embedded.row_table import Request
from agentrl.inference.policy import FinishReason

logger = logging.getLogger(__name__)


class Ticket:
    """A caller's future on its own event loop, settled from another thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def settle(self, result: Any) -> None:
        """Give the caller a result, or raise an exception there; on the caller's loop only."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class DecodeThread:
    """The thread, its inbox, and who waits for what.

    Args:
        decoder: used by the thread alone from `start` on.
        name: of the thread.
    """

    def __init__(self, decoder: BatchDecoder, name: str = "agentrl-decode") -> None:
        self._decoder = decoder
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._tickets: dict[Request, Ticket] = {}
        """Of the messages the decoder has; only the thread touches it."""
        self._pending: set[Ticket] = set()
        """Everybody who waits, also those whose command is still in the inbox."""
        self._stopping = False
        self._failure: PolicyUnavailable | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def generate(self, request: Request) -> FinishReason:
        """Sample a message into `request`. Cancelling frees its row."""
        ticket = Ticket()
        try:
            return await self._ask(ticket, lambda: self._submit(request, ticket))
        except asyncio.CancelledError:
            self._put(lambda: self._cancel(request), strict=False)
            raise

    async def call(self, action: Callable[[], Any]) -> Any:
        """Run something between two steps and return what it gives; cancelled, it is not begun."""
        ticket = Ticket()

        def run() -> None:
            if ticket.future.cancelled():
                return
            try:
                result = action()
            except Exception as error:
                result = error
            self._settle([(ticket, result)])

        return await self._ask(ticket, run)

    async def _ask(self, ticket: Ticket, action: Callable[[], None]) -> Any:
        with self._lock:
            self._pending.add(ticket)
        try:
            self._put(action)
            return await ticket.future
        finally:
            with self._lock:
                self._pending.discard(ticket)

    def post(self, action: Callable[[], None]) -> None:
        """Run something between two steps, without waiting."""
        self._put(action, strict=False)

    async def stop(self, limit_s: float) -> bool:
        """End the thread; messages in the making fail. False when it did not end within the limit."""
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, limit_s)
        return not self._thread.is_alive()

    def _put(self, action: Callable[[], None], *, strict: bool = True) -> None:
        with self._lock:
            failure = self._failure
            if failure is None and self._stopping:
                failure = PolicyUnavailable("the engine was closed")
            if failure is None:
                self._inbox.append(action)
        if failure is None:
            self._wake.set()
        elif strict:
            raise failure

    def _submit(self, request: Request, ticket: Ticket) -> None:
        if ticket.future.cancelled():
            return
        try:
            self._decoder.submit(request)
        except Exception as error:
            self._settle([(ticket, error)])
        else:
            self._tickets[request] = ticket

    def _cancel(self, request: Request) -> None:
        self._tickets.pop(request, None)
        self._decoder.cancel(request)

    def release(self, session: str) -> None:
        """Forget a session between two steps."""

        def run() -> None:
            ended = self._decoder.release(session)
            self._settle([(self._tickets.pop(r), error) for r, error in ended if r in self._tickets])

        self.post(run)

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            while True:
                self._wake.clear()
                self._empty_inbox()
                if self._stopping:
                    break
                ended = self._decoder.step() if self._decoder.busy else []
                self._settle([(self._tickets.pop(r), why) for r, why in ended if r in self._tickets])
                # Messages may wait for rows that only a command can free; then there is nothing to do.
                if not ended and not self._decoder.active:
                    self._wake.wait()
        except BaseException as error:
            logger.exception("the decode thread broke")
            reason = f"the decode thread broke: {type(error).__name__}: {error}"
        self._fail_all(reason)

    def _empty_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            self._failure = PolicyUnavailable(reason)
            self._inbox.clear()
            pending = list(self._pending)
        self._tickets.clear()
        self._settle([(ticket, PolicyUnavailable(reason)) for ticket in pending])

    def _settle(self, results: list[tuple[Ticket, Any]]) -> None:
        """Hand results to their event loops, one call per loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Any]]] = {}
        for ticket, result in results:
            by_loop.setdefault(ticket.loop, []).append((ticket, result))
        for loop, mine in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle_here, mine)
            except RuntimeError:  # The loop was closed: nobody waits any more.
                logger.debug("%d results came after their event loop was closed", len(mine))


def _settle_here(results: list[tuple[Ticket, Any]]) -> None:
    for ticket, result in results:
        ticket.settle(result)
