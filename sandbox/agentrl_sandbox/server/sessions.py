"""The live sessions of a sandbox server and their leases.

A lease says how long a session may stand unused before it is closed: clients die without a word. Knows
sandbox sessions and time; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..interface import Session

log = logging.getLogger(__name__)

CLOSE_LIMIT_S = 30.0


class UnknownSession(Exception):
    """No session has this id (any more)."""


@dataclass(slots=True, eq=False)
class LeasedSession:
    """One session of the backend and when it was last wanted (`time.monotonic`)."""

    session_id: str
    session: Session
    last_used: float
    users: int = 0
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)


class SessionTable:
    """Sessions by id. `lease_s`: seconds a session may stand unused."""

    def __init__(self, *, lease_s: float) -> None:
        if lease_s <= 0:
            raise ValueError("lease_s must be positive")
        self.lease_s = lease_s
        self.expired = 0
        self._sessions: dict[str, LeasedSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session) -> str:
        """Takes a session in; returns its id, which cannot be guessed."""
        session_id = secrets.token_urlsafe(18)
        self._sessions[session_id] = LeasedSession(session_id, session, time.monotonic())
        return session_id

    @asynccontextmanager
    async def use(self, session_id: str) -> AsyncIterator[LeasedSession]:
        """Holds the session so that its lease cannot run out meanwhile. Raises `UnknownSession`."""
        leased = self._sessions.get(session_id)
        if leased is None:
            raise UnknownSession(session_id)
        leased.users += 1
        try:
            yield leased
        finally:
            leased.users -= 1
            leased.last_used = time.monotonic()

    def renew(self, session_ids: Iterable[str]) -> list[str]:
        """Renews the leases of these sessions; returns the ids that are unknown."""
        now, unknown = time.monotonic(), []
        for session_id in session_ids:
            leased = self._sessions.get(session_id)
            if leased is None:
                unknown.append(session_id)
            else:
                leased.last_used = now
        return unknown

    async def remove(self, session_id: str) -> bool:
        """Closes a session; false when there is none of this id (closing twice is no error)."""
        leased = self._sessions.pop(session_id, None)
        if leased is None:
            return False
        await _close(leased)
        return True

    async def remove_expired(self) -> int:
        """Closes the sessions whose lease has run out; returns how many."""
        oldest = time.monotonic() - self.lease_s
        expired = [s.session_id for s in self._sessions.values() if not s.users and s.last_used < oldest]
        for session_id in expired:
            if await self.remove(session_id):
                self.expired += 1
        return len(expired)

    async def close(self) -> None:
        """Closes every session."""
        await asyncio.gather(*(self.remove(session_id) for session_id in list(self._sessions)))


async def _close(leased: LeasedSession) -> None:
    try:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await leased.session.close()
    except TimeoutError:
        log.error("the sandbox did not close session %s within %g s", leased.session_id, CLOSE_LIMIT_S)
    except Exception:
        log.exception("closing session %s failed", leased.session_id)
