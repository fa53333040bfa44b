"""The servers behind one policy: started or attached to, watched, started again, chosen by load.

It knows which servers are live and how busy they are. What weights a server must hold before it may
serve is the policy's business: `synchronise` is called whenever one comes up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentrl.errors import PolicyError, PolicyUnavailable, WeightSyncError
from agentrl.inference.vllm.client import Received, VLLMClient
from agentrl.inference.vllm.server import ServerSpec, VLLMServer

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts in a row that never became healthy before a server of ours is given up."""


@dataclass(eq=False, slots=True)
class Message:
    """A message in flight on one replica."""

    received: Received
    version: int
    """Policy version when it was sent."""
    first_of_session: bool
    task: asyncio.Task[None] | None = None
    again: bool = False
    """Aborted by an update before its first token, to be sent again with the new salt."""
    certain: int | None = None
    """Tokens received before the first update that met it; None while none has."""


@dataclass(eq=False, slots=True)
class Replica:
    """One server, ours or somebody else's."""

    name: str
    client: VLLMClient
    server: VLLMServer | None = None
    live: bool = False
    waits_for_weights: bool = False
    """Healthy, but cannot serve before the next update (see `VLLMPolicy`)."""
    unsure: bool = False
    """An update may have ended in the middle: its weights need not be what their label says."""
    given_up: str = ""
    restarts: int = 0
    messages: set[Message] = field(default_factory=set)
    sessions: int = 0
    watch: asyncio.Task[None] | None = None


class Fleet:
    """All replicas.

    Args:
        spec: what a server serves.
        gpus: devices of each replica; one server is started per entry.
        urls: running servers to attach to instead; `key` must be theirs.
        log_folder: where the servers' logs go.
        synchronise: gives a healthy server the current weights; returns whether it may serve now.
        warm_up: body of a first message.
    """

    def __init__(
        self,
        spec: ServerSpec,
        *,
        gpus: Sequence[tuple[int, ...]],
        urls: Sequence[str],
        key: str,
        log_folder: Path,
        start_limit_s: float,
        silence_limit_s: float,
        synchronise: Callable[[Replica], Awaitable[bool]],
        warm_up: dict[str, object],
    ) -> None:
        self._spec = spec
        self._start_limit_s, self._silence_limit_s = start_limit_s, silence_limit_s
        self._synchronise = synchronise
        self._warm_up_body = warm_up
        self._changed = asyncio.Condition()
        self._closed = False
        self.restarts = 0
        self.context_tokens = spec.context_tokens
        if urls:
            self.replicas = [self._attached(index, url, key) for index, url in enumerate(urls)]
        else:
            self.replicas = [self._own(index, devices, log_folder) for index, devices in enumerate(gpus)]

    def _client(self, name: str, url: str, key: str) -> VLLMClient:
        return VLLMClient(url, key, name=name, silence_limit_s=self._silence_limit_s)

    def _attached(self, index: int, url: str, key: str) -> Replica:
        name = f"vLLM server {index}"
        return Replica(name, self._client(name, url, key))

    def _own(self, index: int, devices: tuple[int, ...], log_folder: Path) -> Replica:
        name = f"vLLM server {index}"
        server = VLLMServer(
            replace(self._spec, gpus=devices), name=name, log_file=log_folder / f"vllm_{index}.log"
        )
        return Replica(name, self._client(name, server.url, server.key), server)

    @property
    def live(self) -> list[Replica]:
        """Replicas that serve now."""
        return [replica for replica in self.replicas if replica.live]

    @property
    def healthy(self) -> list[Replica]:
        """Replicas an update reaches: those that serve, and those that wait for weights."""
        return [replica for replica in self.replicas if replica.live or replica.waits_for_weights]

    async def start(self) -> None:
        """Bring all replicas up.

        Raises:
            PolicyUnavailable: one did not come up; all are stopped again.
        """
        results = await asyncio.gather(*map(self._bring_up, self.replicas), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.close()
                raise result

    async def _bring_up(self, replica: Replica) -> None:
        """Make one replica ready: process, health, context, a first message, its weights."""
        server = replica.server
        if server is not None:
            await server.spawn()
            replica.client = self._client(replica.name, server.url, server.key)
            await server.wait_healthy(replica.client, self._start_limit_s)
        elif not await replica.client.healthy():
            raise PolicyUnavailable(f"{replica.name} at {replica.client.url} does not answer /health")
        await replica.client.label()  # refuses a server without the routes training needs
        if server is not None:
            replica.unsure = False  # a process of its own begins with the model's weights
        elif await replica.client.paused():
            # Its last user was killed in the middle of an update; nothing would ever be sampled.
            logger.warning("%s was left paused; it is resumed and gets its weights anew", replica.name)
            await replica.client.post("/resume", limit_s=self._start_limit_s)
            replica.unsure = True
        _, context = await replica.client.model()
        self.context_tokens = min(self.context_tokens or context, context)
        # The first message compiles the sampler, which may take longer than a message should.
        try:
            await asyncio.wait_for(
                replica.client.generate(self._warm_up_body, Received()), self._start_limit_s
            )
        except TimeoutError as error:
            raise PolicyUnavailable(f"{replica.name} did not finish its first message") from error
        if await self._synchronise(replica):
            self.serve(replica)
        if server is not None:
            replica.watch = asyncio.create_task(self._watch(replica, server))

    def serve(self, replica: Replica) -> None:
        """Let a replica take messages."""
        replica.live, replica.waits_for_weights, replica.restarts = True, False, 0

    async def _watch(self, replica: Replica, server: VLLMServer) -> None:
        """Notice the end of a server's process and start it again."""
        status = await server.wait_ended()
        logger.warning("%s ended with status %s; it is started again", replica.name, status)
        await self._restart(replica)

    def lose(self, replica: Replica) -> None:
        """A replica failed: no new messages until it is back."""
        if not replica.live and not replica.waits_for_weights:
            return
        replica.live = replica.waits_for_weights = False
        if self._closed or (replica.server is not None and replica.server.returncode is not None):
            return  # its watch starts it again
        # The process lives but does not serve, or it is somebody else's: replace or await it.
        if replica.watch is not None:
            replica.watch.cancel()
        replica.watch = asyncio.create_task(self._restart(replica))

    async def _restart(self, replica: Replica) -> None:
        replica.live = replica.waits_for_weights = False
        deadline = time.monotonic() + self._start_limit_s
        while not self._closed:
            replica.restarts += 1
            self.restarts += 1
            try:
                if replica.server is not None:
                    await replica.server.stop()
                await replica.client.close()
                await self._bring_up(replica)
            except (PolicyError, WeightSyncError) as error:
                logger.warning("%s could not be started again: %s", replica.name, error)
                # Somebody else's server comes back when they start it, which takes as long as a start may.
                attached, late = replica.server is None, time.monotonic() > deadline
                if late if attached else replica.restarts >= MAX_RESTARTS:
                    replica.given_up = str(error)
                    break
                await asyncio.sleep(min(5.0 if attached else 30.0, 2.0**replica.restarts))
            else:
                break
        await self.announce()

    async def announce(self) -> None:
        """Wake those who wait for a live replica."""
        async with self._changed:
            self._changed.notify_all()

    async def least_loaded(self) -> Replica:
        """The live replica with the fewest messages in flight, then sessions; waits for one.

        Raises:
            PolicyUnavailable: all were given up, or none was live within the start limit.
        """
        deadline = time.monotonic() + self._start_limit_s
        async with self._changed:
            while not self.live:
                self._check_waiting(deadline)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)
        return min(self.live, key=lambda replica: (len(replica.messages), replica.sessions))

    def _check_waiting(self, deadline: float) -> None:
        if self._closed:
            raise PolicyUnavailable("the policy is closed")
        reasons = [replica.given_up for replica in self.replicas if replica.given_up]
        if len(reasons) == len(self.replicas):
            raise PolicyUnavailable(f"no vLLM server is left: {reasons[0]}")
        if time.monotonic() > deadline:
            names = ", ".join(replica.name for replica in self.replicas)
            raise PolicyUnavailable(
                f"none of {names} was live for {self._start_limit_s:.0f} s (`engine.start_limit_s`)"
            )

    async def close(self) -> None:
        """Stop the servers started here; messages in flight fail."""
        self._closed = True
        for replica in self.replicas:
            replica.live = replica.waits_for_weights = False
            if replica.watch is not None:
                replica.watch.cancel()
            for message in list(replica.messages):
                if message.task is not None:
                    message.task.cancel()
        await self.announce()
        await asyncio.gather(*map(self._stop, self.replicas))

    async def _stop(self, replica: Replica) -> None:
        if replica.watch is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await replica.watch
        await replica.client.close()
        if replica.server is not None:
            await replica.server.stop()
