"""The connection to a Docker engine: one client, its errors in our words, its calls off the event loop.

Knows docker-py and nothing of sessions or protocols. docker-py blocks, so every call goes through
`EngineCalls.run`, which keeps it off the event loop and gives it a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
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
        self,
        what: str,
        call: Callable[..., T],
        *arguments: Any,
        limit_s: float | None = None,
        discard: Callable[[T], object] | None = None,
        **named: Any,
    ) -> T:
        """`call(*arguments, **named)` in a thread. `what` completes the sentence "cannot ...".

        On cancellation or past the limit the thread goes on until the client's own time-out ends it, for
        docker-py cannot be interrupted. What the call then returns is given to `discard`, in a thread; a
        cancelled caller waits for it.

        Args:
            what: is done.
            call: blocks.
            arguments: of the call.
            limit_s: on the time; the calls' own where None.
            discard: closes or removes a result that nobody will have.
            named: arguments of the call.

        Raises:
            SandboxUnavailable: the engine refuses, or does not answer within the limit.
        """

        def guarded() -> T:
            with engine_errors(what):
                return call(*arguments, **named)

        limit_s = limit_s or self._limit_s
        calling = self._threads.submit(guarded)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(calling)
        except (TimeoutError, asyncio.CancelledError) as error:
            dropping = None if discard is None or calling.cancel() else _dropping(calling, discard)
            if isinstance(error, TimeoutError):
                raise SandboxUnavailable(
                    f"cannot {what}: the Docker engine did not answer within {limit_s:g} s"
                ) from error
            if dropping is not None:
                await asyncio.shield(dropping)
            raise

    def close(self) -> None:
        """Gives the threads up; calls under way end by the client's own time-out."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _dropping(calling: Future[T], discard: Callable[[T], object]) -> asyncio.Future[None]:
    """Wait for a call, and discard what it returns, if it does."""

    def drop() -> None:
        if calling.exception() is None:
            with contextlib.suppress(SandboxUnavailable), engine_errors("discard what came too late"):
                discard(calling.result())

    # In a thread and not in a task: the end of the loop would cancel that.
    return asyncio.get_running_loop().run_in_executor(None, drop)
