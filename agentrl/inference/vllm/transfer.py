"""How one version's weights reach running vLLM servers: a file in shared memory, NCCL, or CUDA IPC.

Each transfer moves weights between `pause` and `resume`; the order around it belongs to `vllm.py`. The
two GPU transfers drive vLLM's own trainer-side engines, which block, so they run on a daemon thread
under a limit whose error names the server or rank that is missing. Versions are opaque labels here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agentrl.errors import StallError, WeightSyncError
from agentrl.inference.vllm.client import VLLMClient
from agentrl.weights import adapter_files
from agentrl.weights.shared_memory import weights_folder

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


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
    from safetensors.torch import save_file

    from agentrl.learner.adapter import has_adapter, plain_weights, write_adapter

    if has_adapter(module):
        write_adapter(module, path, base)
        return
    tensors = {name: tensor.contiguous().cpu() for name, tensor in plain_weights(module)}
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial))
    partial.rename(path)


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

    def __init__(self, base: str = "", folder: Path | None = None) -> None:
        self._base = str(Path(base).absolute()) if Path(base).is_dir() else base
        self._folder = weights_folder(folder)
        self._count = 0
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._last: Path | None = None

    async def prepare(self, source: Any) -> str:
        """Check a path's headers, or write a module's weights; see `Transfer.prepare`."""
        if isinstance(source, str | os.PathLike):
            path = str(Path.cwd() / os.fspath(source))
        else:
            self._count += 1
            name = str(self._count) if hasattr(source, "agentrl_adapter") else f"{self._count}.safetensors"
            target = self._folder / name
            await asyncio.to_thread(write_module, source, target, self._base)
            path = str(target)
        shapes = await asyncio.to_thread(tensor_names, path)
        if adapter_files.is_adapter(path):
            self._check_adapter(shapes, path)
        else:
            self._check(shapes, path)
        return path

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
        self._last = path if path.parent == self._folder else None

    def model(self, version: int) -> str:
        """Every version is the server's own model."""
        return ""

    async def restore(self, client: VLLMClient, limit_s: float) -> None:
        """A server's weights are all it holds."""

    async def close(self) -> None:
        """Delete the files in shared memory."""
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


class ServerControl:
    """The four blocking calls of vLLM's `VLLMWeightSyncClient`, fanned out to several servers.

    Every server gets its own rank offset, so that one trainer reaches all of them in one group; who has
    not answered yet is known at any moment (`waiting`), which is what the error of a limit says.
    """

    def __init__(self, clients: Sequence[VLLMClient], *, ranks_per_server: int, limit_s: float) -> None:
        self._targets = [(client.name, client.url, client.key) for client in clients]
        self._ranks = ranks_per_server
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._waiting: dict[str, str] = {}
        self.label = ""

    @property
    def waiting(self) -> dict[str, str]:
        """Route each server is in, for servers that have not answered."""
        with self._lock:
            return dict(self._waiting)

    def _post(self, index: int, path: str, body: Mapping[str, Any]) -> None:
        name, url, key = self._targets[index]
        request = urllib.request.Request(
            f"{url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        with self._lock:
            self._waiting[name] = path
        try:
            with urllib.request.urlopen(request, timeout=self._limit_s) as response:
                response.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise WeightSyncError(f"{name} answered {path} with {error.code}: {text}") from error
        except OSError as error:
            raise WeightSyncError(f"{name} did not answer {path}: {error}") from error
        with self._lock:
            self._waiting.pop(name, None)

    def _all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> None:
        with ThreadPoolExecutor(max_workers=len(self._targets)) as pool:
            futures = [pool.submit(self._post, index, path, body) for index, body in enumerate(bodies)]
            for future in futures:
                future.result()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Tell every server how to join; ranks of server i start after those of the servers before it."""
        bodies: list[dict[str, Any]] = []
        for index in range(len(self._targets)):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] = int(info["rank_offset"]) + index * self._ranks
            bodies.append({"init_info": info})
        self._all("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        """Make every server ready to take weights."""
        self._all("/start_weight_update", [{}] * len(self._targets))

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Make every server receive; returns when all have."""
        self._all("/update_weights", [{"update_info": _over_http(update_info)}] * len(self._targets))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commit the weights under the current label."""
        label = weight_version or self.label
        self._all("/finish_weight_update", [{"weight_version": label}] * len(self._targets))


def _over_http(info: Any) -> Any:
    """CUDA IPC handles hold objects JSON has no words for; they travel pickled, as vLLM expects."""
    if isinstance(info, list):
        return [_over_http(item) for item in info]
    if not isinstance(info, dict) or info.get("ipc_handles") is None:
        return info
    import base64
    import pickle

    rest = {key: value for key, value in info.items() if key != "ipc_handles"}
    packed = base64.b64encode(pickle.dumps(info["ipc_handles"])).decode()
    return {**rest, "ipc_handles_pickled": packed}


class DeviceTransfer:
    """NCCL broadcast between GPUs (`nccl`), or CUDA memory shared on one GPU (`ipc`).

    Drives vLLM's trainer-side engine, so the learner's process must have vLLM installed. The group is
    formed at the first update and again whenever the set of servers changes or an update failed.
    """

    apart = False

    def __init__(self, backend: str, *, ranks_per_server: int = 1, host: str = "127.0.0.1") -> None:
        if backend not in ("nccl", "ipc"):
            raise WeightSyncError(f"there is no weight transfer {backend!r}; there are file, nccl and ipc")
        self._backend = backend
        self._ranks = ranks_per_server
        self._host = host
        self._engine: Any = None
        self._control: ServerControl | None = None
        self._group: tuple[Any, ...] = ()

    async def prepare(self, source: Any) -> Any:
        """A live module is sent from where it lies."""
        if not hasattr(source, "named_parameters"):
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
        """See `Transfer.send`; a collective fails for all its servers or for none."""
        try:
            await self._run(lambda: self._send(clients, staged, label, limit_s), limit_s)
        except Exception as error:
            self._drop()
            return {client.name: error for client in clients}
        return {}

    def _send(self, clients: Sequence[VLLMClient], module: Any, label: str, limit_s: float) -> None:
        group = (id(module), *(client.url for client in clients))
        if self._engine is None or group != self._group:
            self._drop()
            control = ServerControl(clients, ranks_per_server=self._ranks, limit_s=limit_s)
            self._control = control
            self._engine = self._join(control, module, 1 + self._ranks * len(clients))
            self._group = group
        assert self._control is not None
        self._control.label = label
        self._engine.send_weights()

    def _join(self, control: ServerControl, module: Any, world_size: int) -> Any:
        from vllm.distributed.weight_transfer.base import ModuleSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        if self._backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            with socket.socket() as probe:
                probe.bind((self._host, 0))
                port = int(probe.getsockname()[1])
            info: Any = NCCLTrainerInitInfo(
                rank=0, master_address=self._host, master_port=port, world_size=world_size
            )
        else:
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(rank=0)
        return WeightTransferTrainerFactory.trainer_init(info, client=control, source=ModuleSource(module))

    async def _run(self, work: Callable[[], T], limit_s: float) -> T:
        """Run blocking work on a daemon thread: a collective that hangs must not hold the process open."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def body() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # it belongs to whoever waits
                future.set_exception(error)

        threading.Thread(target=body, name=f"{self._backend}-transfer", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limit_s)
        except TimeoutError as error:
            raise StallError(
                self._missing(), limit_s, "raise `engine.update_limit_s` if it is slow"
            ) from error

    def _missing(self) -> str:
        waiting = self._control.waiting if self._control is not None else {}
        if waiting:
            return " and ".join(f"{name} in {path}" for name, path in waiting.items())
        return f"rank 0 (the learner) in its {self._backend} collective: every server has answered"

    def _drop(self) -> None:
        engine, self._engine, self._group = self._engine, None, ()
        if engine is not None:
            # A communicator whose peer is gone may block in its own shutdown.
            threading.Thread(target=engine.shutdown, daemon=True).start()

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
