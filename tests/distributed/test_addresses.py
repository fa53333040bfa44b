"""Addresses of Ray clusters at which nobody listens are refused at once."""

from __future__ import annotations

import os
import socket
import time

import pytest

from agentrl.cluster.ray import RayCluster
from agentrl.config.settings import ClusterSettings
from agentrl.errors import ConfigError
from tests.needed import needed

ray = needed("ray", "make test-distributed installs it")

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


@pytest.fixture
def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_of_the_settings(closed_port: int, scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    begun = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        RayCluster(ClusterSettings(kind="ray", address=address))
    assert time.monotonic() - begun < 20.0
    assert f"no Ray cluster answers at cluster.address = {address!r}: cannot connect to" in str(refused.value)
    assert "`ray start --head` starts one" in str(refused.value)
    assert not ray.is_initialized()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_of_the_environment(
    closed_port: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{scheme}127.0.0.1:{closed_port}"
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS = '{address}': cannot connect to 127.0.0.1:"):
        RayCluster(ClusterSettings(kind="ray"))
    assert time.monotonic() - begun < 20.0


def test_workers_of_a_cluster_of_the_run_s_own_have_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    cluster = RayCluster(ClusterSettings(kind="ray", address="local"))
    try:
        found = ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote(), timeout=90.0)
        assert found == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        cluster.close()
