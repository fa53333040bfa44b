"""A real Docker engine, and an image with a shell that is made from this machine's programs.

`scripts/test_docker.sh` finds or starts an engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.needed import docker_engine

SHELL_IMAGE = "agentrl-test:shell"
PROGRAMS = (
    "sh",
    "bash",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "curl",
    "env",
    "head",
    "ls",
    "mkdir",
    "rm",
    "sleep",
    "timeout",
)


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the engine, which has the image with a shell."""
    from agentrl_sandbox.docker.image import build_image

    with docker_engine() as client:
        before = tags(client)
        build_image(SHELL_IMAGE, packages=(), programs=PROGRAMS)
        yield client
        for tag in tags(client) - before:  # the images of tasks, too
            client.images.remove(tag, force=True)


def tags(engine: Any) -> set[str]:
    """Names of the images that the engine has."""
    return {tag for image in engine.images.list() for tag in image.tags}


def of_this_process(engine: Any) -> list[Any]:
    """Containers that this process made and that are still there."""
    from agentrl_sandbox.docker.pool import OWNER_LABEL, owner_of_this_process

    wanted = {"label": f"{OWNER_LABEL}={owner_of_this_process()}"}
    return engine.containers.list(all=True, filters=wanted, ignore_removed=True)


@pytest.fixture(autouse=True)
def nothing_left(engine: Any) -> Iterator[None]:
    """Each test leaves no container behind."""
    yield
    end = time.monotonic() + 20
    while left := of_this_process(engine):  # the engine removes a container that ended a moment later
        assert time.monotonic() < end, left
        time.sleep(0.1)
