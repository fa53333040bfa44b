"""A cluster by Ray: joined or started, with a place for every rollout worker.

Ray says which machines there are, starts actors on them and tells when one is gone. What actors do is not
known here. The package `ray` is imported only when a run asks for it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from agentrl.config.settings import ClusterSettings
from agentrl.errors import ConfigError, PolicyUnavailable

logger = logging.getLogger(__name__)

REACH_LIMIT_S = 10.0
"""Longest wait for the port of a cluster's address: `ray.init` itself tries for minutes."""
HEAD_LIMIT_S, LOOK_S = 20.0, 2.0
"""How long the head of a cluster may not answer, and how often it is looked at, in seconds: after a minute
Ray ends this process without a word."""


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


class RayCluster:
    """A placement group with one bundle for each rollout worker, spread over the machines.

    Args:
        settings: of the cluster.

    Raises:
        ConfigError: the package is missing, or there is no cluster at the address (cluster.address, else
            RAY_ADDRESS).
    """

    def __init__(self, settings: ClusterSettings) -> None:
        # Read at import: actors without a GPU see none, and nothing is reported to anybody.
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
        self._group: Any = None
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

    async def reserve(self, count: int) -> list[str]:
        """Reserve a bundle for each of `count` workers; where they are, a line each.

        Raises:
            ConfigError: the machines do not have what the workers ask for.
        """
        from ray.util.placement_group import placement_group, placement_group_table

        settings = self._settings
        bundle = {"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {})
        if not settings.address and not os.environ.get("RAY_ADDRESS"):
            self._check_room(bundle, count)  # nobody will add machines to a cluster of this machine's own
        self._group = placement_group([bundle] * count, strategy="SPREAD")
        try:
            await asyncio.wait_for(self._group.ready(), settings.start_limit_s)
        except TimeoutError:
            raise ConfigError(
                f"waited {settings.start_limit_s:.0f} s (cluster.start_limit_s) for room for {count} rollout "
                f"workers with {_named(bundle)} each: {self._found()}"
            ) from None
        homes = placement_group_table(self._group)["bundles_to_node_id"]
        names = {machine["id"]: f"{machine['name']} ({machine['address']})" for machine in self.machines}
        return [
            f"rollout worker {index}: {names.get(homes[index], homes[index])}, {_named(bundle)}"
            for index in range(count)
        ]

    def _check_room(self, bundle: dict[str, float], count: int) -> None:
        free = self._ray.available_resources()
        for name, amount in bundle.items():
            if amount * count > free.get(name, 0.0) + 1e-9:
                raise ConfigError(
                    f"cluster.rollout_workers = {count} with {_named(bundle)} each do not fit: "
                    f"{self._found()}; take fewer workers or a smaller cluster.{name.lower()}s"
                )

    def _found(self) -> str:
        machines = self.machines
        total = {name: sum(m["resources"].get(name, 0.0) for m in machines) for name in ("CPU", "GPU")}
        plural = "machine" if len(machines) == 1 else "machines"
        return f"the cluster has {_named(total)} on {len(machines)} {plural}"

    def place(self, index: int, kind: type, *arguments: Any, concurrency: int) -> Any:
        """An actor of a class in a bundle; it waits for the bundle where its machine is gone."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        options = {"num_cpus": self._settings.cpus, "num_gpus": self._settings.gpus}
        made = self._ray.remote(kind).options(
            **options, max_concurrency=concurrency, scheduling_strategy=strategy
        )
        return made.remote(*arguments)

    def keep(self, values: Sequence[Any]) -> list[Any]:
        """Put arrays into the object store; references that an actor is given as they are."""
        return [self._ray.put(value) for value in values]

    async def ask(
        self, who: str, actor: Any, method: str, *arguments: Any, limit_s: float, asked: str
    ) -> Any:
        """Call a method of an actor; cancelling this cancels it there.

        Args:
            who: the actor, for errors.
            actor: as `place` gave it.
            method: its name.
            arguments: of the method.
            limit_s: longest wait for the answer, in seconds.
            asked: what the method does and where the limit comes from, for errors.

        Raises:
            PolicyUnavailable: the actor, or its machine, is gone, or did not answer within the limit.
        """
        from ray.exceptions import RayError, RayTaskError

        reference = getattr(actor, method).remote(*arguments)
        try:
            async with asyncio.timeout(limit_s):
                return await reference
        except asyncio.CancelledError:
            self._ray.cancel(reference)
            raise
        except TimeoutError:
            self._ray.cancel(reference)
            raise PolicyUnavailable(f"waited {limit_s:.0f} s for {who} to {asked}") from None
        except RayTaskError:
            raise
        except RayError as error:
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

    def end(self, actor: Any) -> None:
        """Kill an actor; one that is gone is fine."""
        if not self.headless:  # who would be asked to
            self._ray.kill(actor)

    def close(self) -> None:
        """Give the bundles back, and leave a cluster that was joined here."""
        from ray.util.placement_group import remove_placement_group

        if self.headless:
            return  # Ray would wait for its answer
        if self._group is not None:
            remove_placement_group(self._group)
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


def _named(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
