"""Streams of a real engine that come late, or when their callers are gone."""

from __future__ import annotations

import asyncio
import http.client
import os
import threading
import time
from typing import Any

import pytest

from agentrl_sandbox.docker.program import ContainerLimits, ContainerProgram
from agentrl_sandbox.docker.shared_engine import SharedEngine, shared_engine
from agentrl_sandbox.docker.workspace import Workspace, WorkspaceShape
from tests.containers.conftest import SHELL_IMAGE

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


async def workspace(engine: SharedEngine) -> None:
    opened = await Workspace.open(engine, WorkspaceShape(SHELL_IMAGE))
    try:
        await opened.run("sleep 60", 60)
    finally:
        await asyncio.shield(asyncio.ensure_future(opened.close()))


async def program(engine: SharedEngine) -> None:
    limits = ContainerLimits(memory_mb=256, cpus=1.0, cpu_s=60, processes=64, file_mb=16, output_bytes=4096)
    await ContainerProgram(engine, ("127.0.0.1", 9), SHELL_IMAGE, limits).start()


def sockets() -> set[str]:
    """The open sockets of this process."""
    links = set[str]()
    for one in os.listdir("/proc/self/fd"):
        try:
            links.add(os.readlink(f"/proc/self/fd/{one}"))
        except FileNotFoundError:  # that of the listing
            continue
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.parametrize(
    ("what", "call"), [(workspace, "attach_socket"), (workspace, "exec_start"), (program, "attach_socket")]
)
async def test_a_stream_that_comes_after_its_caller_was_cancelled_is_closed(
    engine: Any, monkeypatch: pytest.MonkeyPatch, what: Any, call: str
) -> None:
    came, go = threading.Event(), threading.Event()
    given = set[str]()
    async with shared_engine() as shared:
        real = getattr(shared.client.api, call)

        def held(*arguments: Any, **named: Any) -> Any:
            stream = real(*arguments, **named)
            given.add(os.readlink(f"/proc/self/fd/{stream.fileno()}"))
            came.set()
            assert go.wait(30)
            return stream

        monkeypatch.setattr(shared.client.api, call, held)
        running = asyncio.ensure_future(what(shared))
        assert await asyncio.to_thread(came.wait, 30)
        running.cancel()
        await asyncio.wait({running}, timeout=0.1)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(given) == 1
        assert given.isdisjoint(sockets())


async def test_output_that_comes_with_the_head_of_the_answer_is_not_lost(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker-py reads through a buffer, and drops what is left in it."""
    real = http.client.HTTPResponse.begin

    def late(self: Any) -> None:
        time.sleep(0.3)  # by now a command has ended that did not wait
        real(self)

    async with shared_engine() as shared:
        opened = await Workspace.open(shared, WorkspaceShape(SHELL_IMAGE))
        monkeypatch.setattr(http.client.HTTPResponse, "begin", late)
        try:
            done = await opened.run("echo said; exit 3", 60)
        finally:
            await opened.close()
    assert (done.code, done.output) == (3, "said\n")
