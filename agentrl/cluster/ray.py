"""A cluster by Ray: joined or started, with a place for everything that a run has on it.

Ray says which machines there are, starts actors on them and tells when one is gone. What actors do is not
known here. The package `ray` is imported only when a run asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agentrl.config.settings import ClusterSettings, Settings
from agentrl.errors import ConfigError, PolicyUnavailable

logger = logging.getLogger(__name__)

REACH_LIMIT_S = 10.0
"""Longest wait for the port of a cluster's address: `ray.init` itself tries for minutes."""
HEAD_LIMIT_S, LOOK_S = 20.0, 2.0
"""How long the head of a cluster may not answer, and how often it is looked at, in seconds: after a minute
Ray ends this process without a word."""
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
"""Before a lost actor is started again; it doubles with every try that fails."""


def require_ray() -> None:
    """Refuse a run on a cluster where the package `ray` is missing.

    Raises:
        ConfigError: it is.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "cluster.kind = 'ray' needs the package ray: pip install \"agentrl[ray]\" installs it"
        )


def reach(address: str, where: str) -> None:
    """Connect once to the port of a cluster's address.

    Args:
        address: HOST:PORT or ray://HOST:PORT; any other (`auto`, `local`) is left to Ray.
        where: what names it, for the error.

    Raises:
        ConfigError: nobody listens there.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if not host or not port:
        return
    try:
        socket.create_connection((host, port), REACH_LIMIT_S).close()
    except OSError as error:
        raise ConfigError(_nobody(where, f"cannot connect to {host}:{port}: {error}")) from error


def _nobody(where: str, reason: str) -> str:
    return (
        f"no Ray cluster answers at {where}: {reason}; `ray start --head` starts one, and an empty "
        "address takes the one of this machine, or starts one"
    )


@dataclass(frozen=True, slots=True)
class Role:
    """What a run has several of on a cluster, each with cores and GPUs of its own."""

    name: str
    count: int
    cpus: float
    gpus: float
    together: bool
    """On as few machines as hold them; else spread over all."""
    settings: tuple[str, str, str]
    """That say how many there are, and cores and GPUs of each."""

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray reserves for each."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def asked(self) -> str:
        """As it is said in errors."""
        return f"{self.settings[0]} = {self.count} with {named(self.bundle)} each"


RANK, WORKER, SERVER = "learner rank", "rollout worker", "sandbox server"


def roles_of(settings: Settings) -> list[Role]:
    """What a run has on its cluster, the learner's ranks first."""
    cluster, learner = settings.cluster, settings.learner
    ranks = learner.ranks if learner.place == "cluster" else 0
    servers, workers = cluster.sandbox_servers, cluster.rollout_workers
    of_ranks = ("learner.ranks", "cluster.learner_cpus", "cluster.learner_gpus")
    of_servers = ("cluster.sandbox_servers", "cluster.sandbox_cpus", "")
    of_workers = ("cluster.rollout_workers", "cluster.cpus", "cluster.gpus")
    told = [
        Role(RANK, ranks, cluster.learner_cpus, cluster.learner_gpus, together=True, settings=of_ranks),
        Role(SERVER, servers, cluster.sandbox_cpus, 0.0, together=False, settings=of_servers),
        Role(WORKER, workers, cluster.cpus, cluster.gpus, together=False, settings=of_workers),
    ]
    return [role for role in told if role.count]


def hide_gpus_not_lent() -> None:
    """Before torch is imported: an actor that was lent no GPU sees none. Elsewhere nothing happens."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextlib.asynccontextmanager
async def open_cluster(
    settings: Settings, tell: Callable[[str], object] = logger.info
) -> AsyncIterator[RayCluster]:
    """The cluster of a run with a place for each of its roles; given back afterwards.

    Args:
        settings: of the run.
        tell: told where everything will be, a line at a time.

    Raises:
        ConfigError: as `RayCluster`, and `RayCluster.reserve`.
    """
    cluster = RayCluster(settings.cluster)
    try:
        for line in await cluster.reserve(roles_of(settings)):
            tell(line)
        yield cluster
    finally:
        cluster.close()


class RayCluster:
    """A placement group for each role of a run.

    Args:
        settings: of the cluster.

    Raises:
        ConfigError: the package is missing, or there is no cluster at the address (cluster.address, else
            RAY_ADDRESS).
    """

    def __init__(self, settings: ClusterSettings) -> None:
        # Read at import. A call that comes too late must not start a cluster of its own.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own 15 would leave engines on this machine only what the learner does not want.
        os.environ.setdefault("RAY_worker_niceness", "0")
        require_ray()
        import ray

        self._settings = settings
        self._ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            self._join()
        self._groups: dict[str, tuple[Role, Any]] = {}
        self._head: tuple[str, int] | None = None
        self.headless = False
        """Whether the head is gone: workers cannot be ended then, and end with their nodes."""

    def _join(self) -> None:
        address, named = self._settings.address, os.environ.get("RAY_ADDRESS", "")
        where = f"cluster.address = {address!r}" if address else f"RAY_ADDRESS = {named!r}"
        reach(address or named, where)
        try:
            self._ray.init(
                address=address or None,
                include_dashboard=None if address else False,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(_nobody(where, str(error).strip().splitlines()[0])) from error

    @property
    def machines(self) -> list[dict[str, Any]]:
        """Those that are alive: `name`, `address` and `resources` of each."""
        return [
            {
                "id": node["NodeID"],
                "name": node["NodeManagerHostname"],
                "address": node["NodeManagerAddress"],
                "resources": node["Resources"],
            }
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    async def reserve(self, roles: Sequence[Role]) -> list[str]:
        """Reserve a bundle for each of every role; where they are, a line each.

        Raises:
            ConfigError: the machines do not have what is asked for.
        """
        if not self._settings.address and not os.environ.get("RAY_ADDRESS"):
            self._check_room(roles)  # nobody will add machines to a cluster of this machine's own
        return [line for role in roles for line in await self._reserve(role)]

    async def _reserve(self, role: Role) -> list[str]:
        from ray.util.placement_group import placement_group, placement_group_table

        strategy = "PACK" if role.together else "SPREAD"
        group = placement_group([role.bundle] * role.count, strategy=strategy)
        self._groups[role.name] = role, group
        limit_s = self._settings.start_limit_s
        try:
            await asyncio.wait_for(group.ready(), limit_s)
        except TimeoutError:
            raise ConfigError(
                f"waited {limit_s:.0f} s (cluster.start_limit_s) for room for {role.asked}: {self._found()}"
            ) from None
        homes = placement_group_table(group)["bundles_to_node_id"]
        names = {machine["id"]: f"{machine['name']} ({machine['address']})" for machine in self.machines}
        return [
            f"{role.name} {index}: {names.get(homes[index], homes[index])}, {named(role.bundle)}"
            for index in range(role.count)
        ]

    def _check_room(self, roles: Sequence[Role]) -> None:
        free = self._ray.cluster_resources()  # what an attempt before had is given back a moment later
        for at, name in ((1, "CPU"), (2, "GPU")):
            asking = [role for role in roles if role.bundle.get(name)]
            if sum(role.bundle[name] * role.count for role in asking) > free.get(name, 0.0) + 1e-9:
                raise ConfigError(
                    f"{' and '.join(role.asked for role in asking)} do not fit: {self._found()}; take fewer, "
                    f"or a smaller {' or '.join(role.settings[at] for role in asking)}"
                )

    def _found(self) -> str:
        machines = self.machines
        total = {name: sum(m["resources"].get(name, 0.0) for m in machines) for name in ("CPU", "GPU")}
        plural = "machine" if len(machines) == 1 else "machines"
        return f"the cluster has {named(total)} on {len(machines)} {plural}"

    def place(self, role: str, index: int, kind: type, *arguments: Any, concurrency: int = 1) -> Any:
        """An actor of a class in a bundle of a role; it waits for the bundle where its machine is gone."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        found, group = self._groups[role]
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        made = self._ray.remote(kind).options(
            num_cpus=found.cpus,
            num_gpus=found.gpus,
            max_concurrency=concurrency,
            scheduling_strategy=strategy,
            enable_task_events=False,  # a tenth of what a call costs, for a dashboard
        )
        return made.remote(*arguments)

    def keep(self, values: Sequence[Any]) -> list[Any]:
        """Put values into the object store; references, which an actor is given as the values."""
        return [self._ray.put(value) for value in values]

    def call(self, actor: Any, method: str, *arguments: Any) -> Any:
        """Call a method of an actor; a reference to what it will give."""
        return getattr(actor, method).remote(*arguments)

    def is_there(self, reference: Any, seconds: float) -> bool:
        """Whether a call has ended, well or not; waits so long for it."""
        return bool(self._ray.wait([reference], timeout=seconds)[0])

    def value(self, reference: Any) -> Any:
        """What a call gave.

        Raises:
            EOFError: the actor, its machine or what it was given is gone; says how.
        """
        from ray.exceptions import RayError

        try:
            return self._ray.get(reference)
        except RayError as error:
            raise EOFError(_reason(error)) from error

    async def ask(
        self, who: str, actor: Any, method: str, *arguments: Any, limit_s: float | None, asked: str
    ) -> Any:
        """Call a method of an actor; cancelling this cancels it there.

        Args:
            who: the actor, for errors.
            actor: as `place` gave it.
            method: its name.
            arguments: of the method.
            limit_s: longest wait for the answer, in seconds; None of a call that never ends.
            asked: what the method does and where the limit comes from, for errors.

        Raises:
            PolicyUnavailable: the actor, or its machine, is gone, or did not answer within the limit.
        """
        from ray.exceptions import RayError

        reference = self.call(actor, method, *arguments)
        try:
            async with asyncio.timeout(limit_s):
                return await reference
        except asyncio.CancelledError:
            self._ray.cancel(reference)
            raise
        except TimeoutError:
            self._ray.cancel(reference)
            raise PolicyUnavailable(f"waited {limit_s:.0f} s for {who} to {asked}") from None
        except RayError as error:  # what a method itself raises comes as an answer
            raise PolicyUnavailable(f"{who} is gone: {_reason(error)}") from error

    async def watch_head(self) -> None:
        """Look at the head for ever; where it cannot be reached from here at all, only Ray knows of it.

        Raises:
            PolicyUnavailable: it has not answered for `HEAD_LIMIT_S`.
        """
        address: str = self._ray.get_runtime_context().gcs_address
        host, _, port = address.rpartition(":")
        if not await _listens(host, int(port)):
            return
        self._head = host, int(port)
        seen = time.monotonic()
        while time.monotonic() - seen < HEAD_LIMIT_S:
            await asyncio.sleep(LOOK_S)
            if await _listens(*self._head):
                seen = time.monotonic()
        self.headless = True
        raise PolicyUnavailable(
            f"the head of the Ray cluster at {address} has not answered for {HEAD_LIMIT_S:.0f} s: start the "
            "cluster again (`ray start --head` there, `ray start --address` on the others), and go on with "
            "`agentrl train --resume RUN`; no step is lost"
        )

    async def check_head(self) -> None:
        """Look at the head where it is watched: to kill or to place an actor blocks this thread without it.

        Raises:
            PolicyUnavailable: it does not answer.
        """
        if self._head is not None and not await _listens(*self._head):
            raise PolicyUnavailable("the head of the Ray cluster does not answer")

    async def start_again(
        self, who: str, actor: Callable[[], Any], start: Callable[[], Awaitable[object]]
    ) -> None:
        """End an actor and start another in its place, until that succeeds or this is cancelled.

        Args:
            who: the actor, for the log.
            actor: gives the present one; a start that fails may leave one to end, too.
            start: places another, and returns once it can be used.
        """
        delay = FIRST_DELAY_S
        while True:
            try:
                await self.check_head()  # it may be gone with the actor
                self.end(actor())
                await start()
                return
            except Exception as error:  # whatever it is: another machine may have what this lacks
                logger.warning("%s could not be started again: %s", who, error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)

    def end(self, actor: Any) -> None:
        """Kill an actor; one that is gone is fine."""
        if not self.headless:  # who would be asked to
            self._ray.kill(actor)

    def close(self) -> None:
        """Give the bundles back, and leave a cluster that was joined here."""
        from ray.util.placement_group import remove_placement_group

        if self.headless:
            return  # Ray would wait for its answer
        for _, group in self._groups.values():
            remove_placement_group(group)
        if self._ours:
            self._ray.shutdown()


async def _listens(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except OSError:  # a time-out too
        return False
    return True


def _reason(error: Exception) -> str:
    """What Ray says, without its table of identities."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not re.match(r"[a-z_]+:", line)]
    return " ".join(told)[:300]


def named(resources: dict[str, float]) -> str:
    """Resources as they are said in messages."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
