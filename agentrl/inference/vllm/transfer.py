"""How one version's weights reach running vLLM servers: a file in shared memory, NCCL, or CUDA IPC.

Each transfer moves weights between `pause` and `resume`; the order around it belongs to `engine.py`. Versions
are opaque labels here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.errors import LearnerLost, WeightSyncError
from agentrl.inference.vllm.client import VLLMClient
from agentrl.inference.vllm.device_link import Address, DeviceLink, DeviceSender
from agentrl.weights import adapter_files
from agentrl.weights.shared_memory import SHARED_MEMORY, weights_folder

if TYPE_CHECKING:
    from torch import nn


class Transfer(Protocol):
    """Moves weights into paused servers."""

    async def prepare(self, source: Any) -> Any:
        """Check and stage the weights while servers still generate; what `send` takes.

        Raises:
            WeightSyncError: they cannot be used; no server was touched.
        """
        ...

    async def send(
        self, clients: Sequence[VLLMClient], staged: Any, label: str, limit_s: float
    ) -> dict[str, Exception]:
        """Give the staged weights to paused servers; the errors, by name of the server."""
        ...

    def take(self, staged: Any, label: str, version: int) -> None:
        """The staged weights are the current version now."""
        ...

    def model(self, version: int) -> str:
        """Name under which servers have a version beside their own model; empty where that has it."""
        ...

    async def restore(self, client: VLLMClient, limit_s: float) -> None:
        """Give a server that came up what others hold beside their model."""
        ...

    async def close(self) -> None:
        """Release what was staged and the connections."""
        ...


def tensor_names(path: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file or folder, from the headers alone.

    Raises:
        WeightSyncError: there is no file, or its header or length is not that of a complete one.
    """
    root = Path(path)
    files = sorted(root.glob("*.safetensors")) if root.is_dir() else [root]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((item["data_offsets"][1] for item in header.values()), default=0)
            if file.stat().st_size != 8 + length + end:
                raise WeightSyncError(f"{file} is cut off: it should have {8 + length + end} bytes")
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise WeightSyncError(f"{file} is no safetensors file: {error}") from error
        shapes.update({name: tuple(item["shape"]) for name, item in header.items()})
    if not shapes:
        raise WeightSyncError(f"no weights at {path}")
    return shapes


def write_module(module: nn.Module, path: Path, base: str) -> None:
    """Write a live module's weights as one safetensors file, tied tensors once; atomically.

    Of a module with an adapter of `base` that alone is written, as a folder.
    """
    from agentrl.learner.adapter import has_adapter, write_adapter
    from agentrl.learner.weight_source import WeightSource

    if has_adapter(module):
        write_adapter(module, path, base)
    else:
        WeightSource(module).write(path)


class FileTransfer:
    """Weights through a file that every server maps into memory: for the CPU, and everywhere as fallback.

    A live module is written to shared memory first; a path is used where it lies. Of a module with an
    adapter that alone travels, and every server merges it into the base model's files, which it has. The
    last file is kept until the next one, for servers that have to be started again.

    Args:
        base: the model that adapters belong to, and that servers were started with.
        folder: where files are written; shared memory by default.
    """

    apart = False
    """Whether a message keeps the weights it began with: then no server has to be paused."""

    def __init__(self, base: str = "", folder: Path = SHARED_MEMORY) -> None:
        self._base = str(Path(base).absolute()) if Path(base).is_dir() else base
        self._root, self._folder = folder, Path()
        """Where the folder of its own files is made, and that one once there are any."""
        self._count = 0
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._last: Path | None = None

    async def prepare(self, source: Any) -> str:
        """Check a path's headers, or write a module's weights; see `Transfer.prepare`."""
        if isinstance(source, str | os.PathLike):
            path = str(Path.cwd() / os.fspath(source))
        else:
            path = str(await asyncio.to_thread(self._write, source))
        shapes = await asyncio.to_thread(tensor_names, path)
        if adapter_files.is_adapter(path):
            self._check_adapter(shapes, path)
        else:
            self._check(shapes, path)
        return path

    def _write(self, module: nn.Module) -> Path:
        """Write a live module's weights, or its adapter, into a folder of our own."""
        from agentrl.learner.weight_source import WeightSource

        adapter = hasattr(module, "agentrl_adapter")
        room = 0 if adapter else 2 * WeightSource(module).size
        target = self._new_path("" if adapter else ".safetensors", room)
        try:
            write_module(module, target, self._base)
        except OSError as error:
            raise WeightSyncError(f"weights cannot be written to {target}: {error}") from error
        return target

    def _new_path(self, suffix: str = "", room: int = 0) -> Path:
        if not self._count:
            self._folder = weights_folder(self._root, room=room)
        self._count += 1
        return self._folder / f"{self._count}{suffix}"

    def _check_adapter(self, shapes: dict[str, tuple[int, ...]], path: str) -> None:
        named = {adapter_files.owner_of(name) for name in shapes}
        foreign = sorted(name for name in named if self._shapes and name not in self._shapes)
        if foreign:
            raise WeightSyncError(f"{path} is the adapter of another model: this one has no {foreign[0]!r}")

    def _check(self, shapes: dict[str, tuple[int, ...]], path: str) -> None:
        expected = self._shapes or shapes
        missing = sorted(expected.keys() - shapes.keys())
        wrong = sorted(name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name])
        if missing or wrong:
            raise WeightSyncError(
                f"{path} does not hold the weights of this model: missing {missing[:3]}, "
                f"of another shape {wrong[:3]}"
            )
        self._shapes = expected

    def expect(self, path: str) -> None:
        """Take the names and shapes every version must have from the model the servers started with.

        What a live module does not list as parameters is not expected: a tied output matrix, and tables
        that old checkpoints hold.
        """
        shapes = tensor_names(path)
        config = Path(path) / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("tie_word_embeddings"):
            shapes.pop("lm_head.weight", None)
        self._shapes = {
            name: shape for name, shape in shapes.items() if not name.endswith("rotary_emb.inv_freq")
        }

    async def send(
        self, clients: Sequence[VLLMClient], staged: str, label: str, limit_s: float
    ) -> dict[str, Exception]:
        """See `Transfer.send`; a server that fails does not stop the others."""
        info = {"path": staged, "base": self._base if adapter_files.is_adapter(staged) else ""}

        async def update(client: VLLMClient) -> None:
            started = time.monotonic()

            def left() -> float:
                return max(0.1, limit_s - (time.monotonic() - started))

            await client.post("/init_weight_transfer_engine", {"init_info": {}}, limit_s=left())
            await client.post("/start_weight_update", limit_s=left())
            await client.post("/update_weights", {"update_info": info}, limit_s=left())
            await client.post("/finish_weight_update", {"weight_version": label}, limit_s=left())

        return await each(clients, update)

    def take(self, staged: str, label: str, version: int) -> None:
        """The staged weights are the current version now: the file of the one before is deleted."""
        path = Path(staged)
        if self._last is not None and self._last != path:
            if self._last.is_dir():
                shutil.rmtree(self._last, ignore_errors=True)
            self._last.unlink(missing_ok=True)
        self._last = path if self._owns(path) else None

    def _owns(self, path: Path) -> bool:
        return self._count > 0 and path.parent == self._folder

    def model(self, version: int) -> str:
        """Every version is the server's own model."""
        return ""

    async def restore(self, client: VLLMClient, limit_s: float) -> None:
        """A server's weights are all it holds."""

    async def close(self) -> None:
        """Delete the files in shared memory."""
        if self._count:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)


async def each(
    clients: Sequence[VLLMClient], action: Callable[[VLLMClient], Awaitable[object]]
) -> dict[str, Exception]:
    """Do something with all servers at once; the errors, by name of the server."""
    results = await asyncio.gather(*(action(client) for client in clients), return_exceptions=True)
    errors: dict[str, Exception] = {}
    for client, result in zip(clients, results, strict=True):
        if isinstance(result, Exception):
            errors[client.name] = result
        elif isinstance(result, BaseException):
            raise result
    return errors


class DeviceTransfer:
    """Weights from device to device, from where they lie: a live module, or one whose ranks live elsewhere.

    vLLM must be installed where the learner is. The group is formed at the first update and again whenever
    the set of servers changes or an update failed.
    """

    apart = False

    def __init__(self, backend: str, *, ranks_per_server: int = 1, host: str = "127.0.0.1") -> None:
        if backend not in ("nccl", "ipc"):
            raise WeightSyncError(f"there is no weight transfer {backend!r}; there are file, nccl and ipc")
        self._backend = backend
        self._ranks = ranks_per_server
        self._host = host
        self._sender: DeviceSender | None = None
        self._group: tuple[Any, ...] = ()

    async def prepare(self, source: Any) -> Any:
        """Live weights are sent from where they lie."""
        if not hasattr(source, "named_parameters") and not hasattr(source, "transmit"):
            raise WeightSyncError(
                f"the weight transfer {self._backend!r} sends a live module, not {type(source).__name__}; "
                "use the transfer `file` for weights on disk"
            )
        if hasattr(source, "agentrl_adapter"):
            raise WeightSyncError(
                f"the weight transfer {self._backend!r} sends a model's own weights, and this one learns an "
                "adapter; its merged weights go through the transfer `file`"
            )
        return source

    async def send(
        self, clients: Sequence[VLLMClient], staged: Any, label: str, limit_s: float
    ) -> dict[str, Exception]:
        """See `Transfer.send`; a collective fails for all its servers or for none.

        Raises:
            LearnerLost: the learner's ranks cannot go on.
        """
        servers = tuple(Address(client.name, client.url, client.key) for client in clients)
        link = DeviceLink(self._backend, servers, self._ranks, self._host, limit_s)
        try:
            if hasattr(staged, "transmit"):
                await staged.transmit(link, label)
            else:
                await self._joined(link, staged).sent(label)
        except LearnerLost:
            raise
        except Exception as error:
            self._drop()
            return {client.name: error for client in clients}
        return {}

    def _joined(self, link: DeviceLink, module: nn.Module) -> DeviceSender:
        from agentrl.learner.weight_source import WeightSource

        if self._sender is None or self._group != (module, link):
            self._drop()
            self._sender, self._group = link.join(WeightSource(module)), (module, link)
        return self._sender

    def _drop(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._sender, self._group = None, ()

    def take(self, staged: Any, label: str, version: int) -> None:
        """Nothing is kept: the weights stay with the learner."""

    def model(self, version: int) -> str:
        """Every version is the server's own model."""
        return ""

    async def restore(self, client: VLLMClient, limit_s: float) -> None:
        """A server's weights are all it holds."""

    async def close(self) -> None:
        """Leave the group."""
        self._drop()


def make_transfer(backend: str, base: str, *, ranks_per_server: int = 1) -> FileTransfer | DeviceTransfer:
    """The transfer called `file`, `nccl` or `ipc`, to servers of the model `base`."""
    if backend == "file":
        return FileTransfer(base)
    return DeviceTransfer(backend, ranks_per_server=ranks_per_server)
