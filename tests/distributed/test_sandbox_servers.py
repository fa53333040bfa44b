"""Sandbox servers on a Ray cluster: one pool for all rollout workers."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError
from agentrl.rollout.sandbox_servers import SandboxServers
from agentrl.rollout.worker_pool import RolloutWorkers, Worker, rollout_workers
from tests.needed import needed

ray = needed("ray", "make test-distributed installs it")

from tests.distributed.test_ray_cluster import arithmetic, demo, until

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]


async def opened(servers: SandboxServers) -> dict[int, int]:
    """Sessions that each server has opened."""

    def count(host: Any) -> int:
        return host._server.metrics.sessions_opened

    return {index: await actor.__ray_call__.remote(count) for index, actor in servers._actors.items()}


async def played(workers: RolloutWorkers, episodes: int) -> None:
    """Episodes at once, none of which may fail."""
    found = await asyncio.gather(*(arithmetic(workers, f"e{n}") for n in range(episodes)))
    assert [one.failure for one in found] == [None] * episodes


async def test_the_servers_are_one_pool_and_a_lost_one_is_replaced(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--cluster.rollout_workers=2", "--cluster.cpus=0.4", "--cluster.sandbox_servers=2")
    async with rollout_workers(demo(tmp_path, *flags, "--cluster.sandbox_cpus=0.4")) as workers:
        servers = workers._sandboxes
        assert servers is not None
        await played(workers, 8)
        before = await opened(servers)
        assert min(before.values()) > 0
        assert sum(before.values()) == 8
        urls, pid = servers.urls, await servers._actors[0].__ray_call__.remote(lambda _: os.getpid())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(servers.urls) == 2 and servers.urls[0] != urls[0], 90.0)
        assert "sandbox server 0 is gone: " in caplog.text
        assert servers.urls[1] == urls[1]
        for worker in workers._workers:
            while not await knows(worker, servers.urls[0]):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)
        await played(workers, 8)
        after = await opened(servers)
        assert after[0] > 0  # of the new one, by workers that were there before it


async def knows(worker: Worker, url: str) -> bool:
    """Whether a worker has a server in its pool."""
    known = await worker.actor.__ray_call__.remote(lambda it: [one.url for one in it._sandbox._endpoints])
    return url in known


def test_two_pools_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="cluster.sandbox_servers starts a pool of its own, and sandbox.backe"
    ):
        demo(tmp_path, "--cluster.sandbox_servers=1", "--sandbox.backend=remote", "--sandbox.urls=http://a:1")
