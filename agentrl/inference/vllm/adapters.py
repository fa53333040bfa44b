"""Adapters that vLLM servers apply beside their base weights, under a new name for each version.

One name that is loaded again would meet the prefix cache of its older weights; a new one cannot. A message
keeps the adapter it began with, so servers are not paused and every token's version is its adapter's. Names
beyond those that servers hold at once are unloaded, and refused from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from agentrl.errors import PolicyError
from agentrl.inference.vllm.client import ServerRefused, VLLMClient
from agentrl.inference.vllm.transfer import FileTransfer, each
from agentrl.weights.adapter_files import is_adapter
from agentrl.weights.shared_memory import SHARED_MEMORY

NEEDED = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve ... --enable-lora --max-loras {0} --max-cpu-loras {0}"
)
_PROBE_LIMIT_S = 30.0


class AdapterTransfer(FileTransfer):
    """Gives servers one adapter a version.

    Args:
        base: the model the adapters belong to.
        resident: adapters that servers hold at once.
        in_use: versions that messages in flight are sampled with.
    """

    apart = True

    def __init__(
        self, base: str, resident: int, in_use: Callable[[], Collection[int]], folder: Path = SHARED_MEMORY
    ) -> None:
        super().__init__(base, folder)
        self._resident, self._in_use = resident, in_use
        self._names: dict[int, str] = {}
        """Of the versions that servers hold, oldest first."""
        self._paths: dict[int, str] = {}
        """Of those, and of the unloaded ones that messages in flight began with."""

    def model(self, version: int) -> str:
        """Name of a version's adapter; empty for the base model."""
        return self._names.get(version, "")

    async def prepare(self, source: Any) -> str:
        """See `FileTransfer.prepare`; an adapter that a learner wrote is copied, for it may delete it."""
        path = await super().prepare(source)
        if is_adapter(path) and not self._owns(Path(path)):
            own = self._new_path()
            await asyncio.to_thread(shutil.copytree, path, own)
            return str(own)
        return path

    async def send(
        self, clients: Sequence[VLLMClient], staged: str, label: str, limit_s: float
    ) -> dict[str, Exception]:
        """Load an adapter under its label and unload the oldest; other weights go as a file."""
        if not is_adapter(staged):
            return await super().send(clients, staged, label, limit_s)
        stale = list(self._names.values())[: max(0, len(self._names) + 1 - self._resident)]

        async def load(client: VLLMClient) -> None:
            await _load(client, label, staged, limit_s, self._resident)
            for name in stale:
                with contextlib.suppress(ServerRefused):  # a server started again need not have it
                    await client.post("/v1/unload_lora_adapter", {"lora_name": name}, limit_s=limit_s)

        return await each(clients, load)

    def take(self, staged: str, label: str, version: int) -> None:
        """A server at least holds this version now."""
        if not is_adapter(staged):
            return
        self._names[version], self._paths[version] = label, staged
        for old in list(self._names)[: -self._resident]:
            del self._names[old]
        # A server may read the file of a running message's adapter again.
        needed = {*self._names, *self._in_use()}
        for old in [one for one in self._paths if one not in needed]:
            path = Path(self._paths.pop(old))
            if self._owns(path):
                shutil.rmtree(path, ignore_errors=True)

    async def restore(self, client: VLLMClient, limit_s: float) -> None:
        """Give a server that came up the adapters the others hold.

        Raises:
            PolicyError: it takes none.
        """
        try:
            await client.post(
                "/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}, limit_s=_PROBE_LIMIT_S
            )
        except ServerRefused as error:
            if "must be provided" not in str(error):
                needed = NEEDED.format(self._resident)
                raise PolicyError(
                    f"{client.name} ({client.url}) cannot load adapters; start it as: {needed}"
                ) from error
        held = {one["id"] for one in (await client.get("/v1/models", limit_s=limit_s))["data"]}
        for version, name in self._names.items():
            if name not in held:
                await _load(client, name, self._paths[version], limit_s, self._resident)


async def _load(client: VLLMClient, name: str, path: str, limit_s: float, resident: int) -> None:
    try:
        await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, limit_s=limit_s)
    except ServerRefused as error:
        if "already been" in str(error):
            return  # the answer to an earlier call was lost
        raise PolicyError(
            f"{error}; {client.name} must be started as: {NEEDED.format(resident)}, with room for the rank"
        ) from error
