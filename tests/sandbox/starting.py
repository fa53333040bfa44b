"""Sandboxes that are started, or the test is skipped; runs that are cancelled."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentrl_sandbox import SandboxUnavailable
from agentrl_sandbox.interface import Sandbox


@contextmanager
def started(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox while it is open; skips where this machine has none of its level."""
    try:
        asyncio.run(sandbox.start())
    except SandboxUnavailable as error:
        pytest.skip(str(error)[:300])
    yield sandbox
    asyncio.run(sandbox.close())


async def cancelled(call: Awaitable[Any], after_s: float = 0.3) -> None:
    """Let a call run for a moment and cancel it."""
    running = asyncio.ensure_future(call)
    await asyncio.sleep(after_s)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
