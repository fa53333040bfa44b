"""The connection to a Docker engine: one client, its errors in our words, its calls off the event loop.

Knows docker-py and nothing of sessions or protocols. docker-py blocks, so every call goes through
`EngineCalls.run`, which keeps it off the event loop and gives it a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ..errors import SandboxUnavailable

if TYPE_CHECKING:
    import docker

T = TypeVar("T")

# An engine that needs longer than this for one small request is as good as dead.
CALL_LIMIT_S = 60.0


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns whatever docker-py raises into `SandboxUnavailable("cannot <what>: <reason>")`."""
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise SandboxUnavailable(
            f"cannot {what}: the engine has no such image ({error.explanation}). "
            "Build one: python -m agentrl_sandbox.docker.image"
        ) from error
    except docker.errors.APIError as error:
        raise SandboxUnavailable(
            f"cannot {what}: the Docker engine says: {error.explanation or error}"
        ) from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise SandboxUnavailable(
            f"cannot {what}: no Docker engine answers ({error}). Start one, or set DOCKER_HOST"
        ) from error


def connect(base_url: str | None = None, *, timeout_s: float = CALL_LIMIT_S) -> docker.DockerClient:
    """A client of the engine at `base_url`, by default the one of the environment (`DOCKER_HOST`).

    Raises `SandboxUnavailable` when docker-py is not installed or no engine answers.
    """
    try:
        import docker
    except ImportError as error:
        raise SandboxUnavailable("the docker backend needs docker-py: pip install docker") from error
    with engine_errors("connect"):
        _probe(base_url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
        # The pool must be as wide as the threads that use it, or urllib3 drops and reopens connections.
        options: dict[str, Any] = {"timeout": timeout_s, "max_pool_size": 32}
        client = docker.DockerClient(base_url=base_url, **options) if base_url else docker.from_env(**options)
        client.ping()
        return client


def _probe(url: str) -> None:
    """Raises OSError when nobody listens at a unix socket: docker-py would leave its own socket open."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CALL_LIMIT_S)
            try:
                probe.connect(parts.path)
            except OSError as error:
                raise OSError(f"{url}: {error.strerror or error}") from error


class EngineCalls:
    """Runs blocking engine calls in threads of their own, each with a limit that names the engine."""

    def __init__(self, *, threads: int = 16, limit_s: float = CALL_LIMIT_S) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="docker-call")
        self._limit_s = limit_s

    async def run(
        self, what: str, call: Callable[..., T], *arguments: Any, limit_s: float | None = None, **named: Any
    ) -> T:
        """`call(*arguments, **named)` in a thread. `what` completes the sentence "cannot ...".

        Raises `SandboxUnavailable` past the limit: `limit_s`, where it is given.

        On cancellation or past the limit the thread goes on until the client's own time-out ends it:
        docker-py cannot be interrupted, so callers must clean up what such a call may still make (labels do
        that).
        """

        def guarded() -> T:
            with engine_errors(what):
                return call(*arguments, **named)

        loop = asyncio.get_running_loop()
        limit_s = limit_s or self._limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await loop.run_in_executor(self._threads, functools.partial(guarded))
        except TimeoutError as error:
            raise SandboxUnavailable(
                f"cannot {what}: the Docker engine did not answer within {limit_s:g} s"
            ) from error

    def close(self) -> None:
        """Gives the threads up; calls under way end by the client's own time-out."""
        self._threads.shutdown(wait=False, cancel_futures=True)
