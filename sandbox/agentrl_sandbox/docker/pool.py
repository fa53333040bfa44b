"""Containers ready before they are wanted, and the removal of those that a dead owner left behind.

Knows containers by their shape and owners by their process; knows nothing of sessions or programs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PoolExhausted, SandboxError
from .container import Container, ContainerShape

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)

OWNER_LABEL = "agentrl.sandbox.owner"
SANDBOX_LABEL = "agentrl.sandbox.id"
LEASE_LABEL = "agentrl.sandbox.lease-until"
LEASE_S = 24 * 3600.0
_LONGEST_REFILL_WAIT_S = 30.0


def boot_id() -> str:
    """This boot of this machine, and this namespace of it: process ids mean something only within both.

    Trainers in containers of one machine may share an engine, and see nothing of each other's processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "unknown"


def process_started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, None when there is none: tells a reused id apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def owner_of_this_process() -> str:
    """The owner's label: boot, process id, start time."""
    return f"{boot_id()}/{os.getpid()}/{process_started(os.getpid())}"


def owner_labels() -> dict[str, str]:
    """Labels of a container of this process, by which it is removed when the process has died."""
    return {OWNER_LABEL: owner_of_this_process(), LEASE_LABEL: f"{time.time() + LEASE_S:.0f}"}


def is_abandoned(labels: dict[str, str], now: float) -> bool:
    """True when the owner in these labels is a dead process of this machine, or the lease has run out."""
    boot, _, process = labels.get(OWNER_LABEL, "").partition("/")
    pid, _, started = process.partition("/")
    if boot == boot_id() and pid.isdigit() and process_started(int(pid)) != started:
        return True
    try:
        return float(labels.get(LEASE_LABEL, "inf")) < now
    except ValueError:
        return False


def remove_abandoned(client: docker.DockerClient, *, sandbox: str | None = None) -> int:
    """Removes containers of dead owners, and those of `sandbox`; returns how many. Blocks."""
    import docker.errors

    removed = 0
    for container in client.containers.list(all=True, filters={"label": OWNER_LABEL}, ignore_removed=True):
        labels = dict(container.labels)
        if (sandbox is None or labels.get(SANDBOX_LABEL) != sandbox) and not is_abandoned(
            labels, time.time()
        ):
            continue
        try:
            container.remove(force=True)
            removed += 1
        except docker.errors.APIError as error:
            log.info("container %s was not removed: %s", container.short_id, error.explanation)
    return removed


class ContainerPool:
    """Keeps `warm` containers of one shape ready and never has more than `most` alive.

    `start` makes a container of a shape. `wait_s`: how long `take` waits for room.
    """

    def __init__(
        self,
        start: Callable[[ContainerShape], Awaitable[Container]],
        shape: ContainerShape,
        *,
        warm: int,
        most: int,
        wait_s: float,
    ) -> None:
        self._start = start
        self._shape = shape
        self._warm = min(warm, most)
        self._most = most
        self._wait_s = wait_s
        self._room = asyncio.Semaphore(most)
        self._ready: list[Container] = []
        self._wanted = asyncio.Event()
        self._refill: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Starts to fill the pool."""
        self._wanted.set()
        self._refill = asyncio.create_task(self._keep_full())

    @property
    def ready(self) -> int:
        """Containers that wait to be taken."""
        return len(self._ready)

    async def take(self, shape: ContainerShape) -> Container:
        """A container that nobody used before. Raises `PoolExhausted` and what starting one raises."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._room.acquire()
        except TimeoutError as error:
            raise PoolExhausted(
                f"all {self._most} containers of the docker sandbox were taken for {self._wait_s:g} s"
            ) from error
        try:
            while shape == self._shape and self._ready:
                container = self._ready.pop(0)
                self._wanted.set()
                if container.alive:
                    return container
                await container.remove()
            return await self._start(shape)
        except BaseException:
            self._room.release()
            raise

    async def give_back(self, container: Container) -> None:
        """Removes a container that was taken; its place is free at once."""
        self._room.release()
        self._wanted.set()
        await container.remove()

    async def _keep_full(self) -> None:
        failures = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while len(self._ready) < self._warm:
                try:
                    self._ready.append(await self._start(self._shape))
                    failures = 0
                except SandboxError as error:
                    # `take` tries for itself and tells its caller; here it is only tried again later.
                    failures += 1
                    log.warning("the warm pool could not be filled: %s", error)
                    await asyncio.sleep(min(_LONGEST_REFILL_WAIT_S, 0.5 * 2**failures))

    async def close(self) -> None:
        """Removes every container that waits."""
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        ready, self._ready = self._ready, []
        await asyncio.gather(*(container.remove() for container in ready))


def events_of(client: docker.DockerClient, container_id: str, since: float) -> tuple[bool, int | None]:
    """Whether the engine saw the container run out of memory, and its exit code if it has ended. Blocks.

    The engine's memory of events is asked, not the container's state: the container may be removed by now,
    and the state's OOMKilled is false when another process than the first was killed.
    """
    import json

    wanted: dict[str, Any] = {"container": [container_id], "event": ["die", "oom"]}
    now = time.time()
    text: Any = client.api.events(since=int(since), until=int(now) + 1, filters=wanted)
    memory, exit_code = False, None
    for line in b"".join(text).splitlines():
        event = json.loads(line)
        action = event.get("Action")
        if action == "oom":
            memory = True
        elif action == "die":
            exit_code = int(event["Actor"]["Attributes"].get("exitCode", -1))
    return memory, exit_code
