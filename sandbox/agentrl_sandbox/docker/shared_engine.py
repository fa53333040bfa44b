"""One connection to a Docker engine for all that one event loop runs in containers of its own.

Open while somebody uses it. Knows labels and nothing of what runs in containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import weakref
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..errors import SandboxUnavailable
from .engine import EngineCalls, connect
from .pool import SANDBOX_LABEL, owner_labels, remove_abandoned

if TYPE_CHECKING:
    import docker

__all__ = ["SharedEngine", "shared_engine"]


class SharedEngine:
    """The connection to one Docker engine for the programs of one event loop; made by `shared_engine`."""

    def __init__(self, base_url: str | None) -> None:
        self.base_url = base_url
        self.id = uuid.uuid4().hex
        self.users = 0
        self.calls = EngineCalls()
        self.client: docker.DockerClient
        self.opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and remove what dead processes left."""
        self.client = await self.calls.run(
            "connect", connect, self.base_url, discard=lambda client: client.close()
        )
        await self.calls.run("remove old containers", remove_abandoned, self.client)

    def labels(self) -> dict[str, str]:
        """Of a container that is made through this; by them it is removed when this process has died."""
        return {**owner_labels(), SANDBOX_LABEL: self.id}

    async def close(self) -> None:
        """Remove what may be left of this one."""
        if hasattr(self, "client"):
            with contextlib.suppress(SandboxUnavailable):
                await self.calls.run("remove containers", remove_abandoned, self.client, sandbox=self.id)
            self.client.close()
        self.calls.close()


_ENGINES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, SharedEngine]] = (
    weakref.WeakKeyDictionary()
)


@contextlib.asynccontextmanager
async def shared_engine(base_url: str | None = None) -> AsyncIterator[SharedEngine]:
    """The engine at `base_url`, by default that of the environment; the last user closes the connection.

    Raises:
        SandboxUnavailable: docker-py is not installed, or no engine answers.
    """
    shared = _ENGINES.setdefault(asyncio.get_running_loop(), {})
    one = shared.get(base_url or "") or shared.setdefault(base_url or "", SharedEngine(base_url))
    one.users += 1
    try:
        if one.opening is None:
            one.opening = asyncio.ensure_future(one.open())
        await asyncio.shield(one.opening)
        yield one
    finally:
        one.users -= 1
        if not one.users:
            shared.pop(base_url or "", None)
            await asyncio.shield(asyncio.ensure_future(_closed(one)))


async def _closed(one: SharedEngine) -> None:
    if one.opening is not None:
        await asyncio.wait({one.opening})
        one.opening.exception()  # whoever waited for it was told
    await one.close()
