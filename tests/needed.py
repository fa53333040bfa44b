"""Packages and programs that a test cannot do without: missing, it is skipped, or fails where they were promised.

Whoever has installed them sets AGENTRL_REQUIRE_ADAPTERS=1, as `make test-agents` and `make test-families` do: there
a test that does not run is a failure.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from agentrl_sandbox import SandboxUnavailable

__all__ = ["docker_engine", "missing", "needed"]


def needed(package: str, reason: str) -> Any:
    """The package, imported; `reason` says what installs it."""
    if os.environ.get("AGENTRL_REQUIRE_ADAPTERS"):
        with warnings.catch_warnings():  # as importorskip does
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    return pytest.importorskip(package, reason=reason)


def missing(why: str) -> NoReturn:
    """Skip the running test, or fail it where nothing may be missing."""
    if os.environ.get("AGENTRL_REQUIRE_ADAPTERS"):
        pytest.fail(f"AGENTRL_REQUIRE_ADAPTERS is set: {why}")
    pytest.skip(why)


@contextlib.contextmanager
def docker_engine() -> Iterator[Any]:
    """A client of the Docker engine; without one, skip, or fail where AGENTRL_REQUIRE_DOCKER is set."""
    from agentrl_sandbox.docker.engine import connect

    try:
        client = connect()
    except SandboxUnavailable as error:
        if os.environ.get("AGENTRL_REQUIRE_DOCKER"):
            raise
        pytest.skip(f"no Docker engine (scripts/test_docker.sh starts one): {error}")
    yield client
    client.close()
