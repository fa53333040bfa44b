"""A group of one trainer and its servers, through which weights go from device to device.

It drives vLLM's own trainer-side engines, which block and have no limits, so they run on daemon threads
under a limit whose error names who is missing. It lives where the learner does: a `DeviceLink` may be sent
into the process of a rank.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from agentrl.errors import StallError, WeightSyncError


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is reached."""

    name: str
    url: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """What a trainer must know to send weights to some servers."""

    backend: str
    """`nccl`, a broadcast between GPUs; or `ipc`, CUDA memory shared on one GPU."""
    servers: tuple[Address, ...]
    ranks_per_server: int = 1
    host: str = "127.0.0.1"
    limit_s: float = 300.0
    """Longest wait for one update."""

    def join(self, source: Any, rank: int = 0) -> DeviceSender:
        """Take part as one of the learner's ranks: all gather, the first sends.

        Args:
            source: has `metadata()` and may be iterated again for each update (`WeightSource`).
            rank: of the learner.
        """
        return DeviceSender(self, source, rank)

    def trainer(self, control: ServerControl, source: Any) -> Any:
        """vLLM's trainer-side engine, once all servers have joined."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        if self.backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            with socket.socket() as probe:
                probe.bind((self.host, 0))
                port = int(probe.getsockname()[1])
            size = 1 + self.ranks_per_server * len(self.servers)
            info: Any = NCCLTrainerInitInfo(
                rank=0, master_address=self.host, master_port=port, world_size=size
            )
        else:
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(rank=0)
        return WeightTransferTrainerFactory.trainer_init(info, client=control, source=source)


class DeviceSender:
    """One rank's end of a link; the group is formed at the first update."""

    def __init__(self, link: DeviceLink, source: Any, rank: int) -> None:
        self._link, self._rank = link, rank
        self._source = _Gathering(source)
        self._control = ServerControl(
            link.servers, ranks_per_server=link.ranks_per_server, limit_s=link.limit_s
        )
        self._trainer: Any = None

    def send(self, label: str) -> None:
        """Gather the present weights, and from the first rank send them; every rank must call it.

        Raises:
            StallError: who was waited for longer than the link's limit. The group is of no use then, and
                neither are several ranks, which may be in the middle of a collective.
            WeightSyncError: a server refused; what the ranks gather together has come to its end.
        """
        work = self._begin(label)
        if not wait([work], self._link.limit_s).done:
            raise self._stall()
        work.result()

    async def sent(self, label: str) -> None:
        """`send` for a loop of events."""
        work = self._begin(label)
        if not (await asyncio.wait([asyncio.wrap_future(work)], timeout=self._link.limit_s))[0]:
            raise self._stall()
        work.result()

    def _begin(self, label: str) -> Future[None]:
        """Work on a daemon thread: a collective that hangs must not hold the process open."""
        import torch

        self._control.label = label
        self._source.begin()
        work: Future[None] = Future()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def body() -> None:
            try:
                if device is not None:  # each thread has one of its own
                    torch.cuda.set_device(device)
                work.set_result(self._send())
            except BaseException as error:  # it belongs to whoever waits
                work.set_exception(error)

        threading.Thread(target=body, name=f"{self._link.backend}-transfer", daemon=True).start()
        return work

    def _send(self) -> None:
        try:
            if self._rank == 0:
                if self._trainer is None:
                    self._trainer = self._link.trainer(self._control, self._source)
                self._trainer.send_weights()
        finally:
            # Other ranks only gather, and must not wait for one whose sending failed.
            self._source.finish()

    def _stall(self) -> StallError:
        return StallError(self._missing(), self._link.limit_s, "raise `engine.update_limit_s` if it is slow")

    def _missing(self) -> str:
        waiting = self._control.waiting
        if waiting:
            return " and ".join(f"{name} in {path}" for name, path in waiting.items())
        if self._rank > 0:
            return f"the learner's other ranks to gather weights with rank {self._rank}"
        return (
            f"rank 0 (the learner) in its {self._link.backend} collective, or the learner's other ranks to "
            "gather with it: every server has answered"
        )

    def close(self) -> None:
        """Leave the group."""
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            # A communicator whose peer is gone may block in its own shutdown.
            threading.Thread(target=trainer.shutdown, daemon=True).start()


class _Gathering:
    """A source of weights whose iteration can be brought to its end by somebody else."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._left: Iterator[Any] | None = None

    def begin(self) -> None:
        """An update begins."""
        self._left = None

    def metadata(self) -> Any:
        """See `WeightSource.metadata`."""
        return self._source.metadata()

    def __iter__(self) -> Iterator[Any]:
        self._left = iter(self._source)
        return self._left

    def finish(self) -> None:
        """Gather what was not gathered yet."""
        for _ in self if self._left is None else self._left:
            pass


class ServerControl:
    """The four blocking calls of vLLM's `VLLMWeightSyncClient`, fanned out to several servers.

    Every server gets its own rank offset, so that one trainer reaches all of them in one group; who has
    not answered yet is known at any moment (`waiting`), which is what the error of a limit says.
    """

    def __init__(self, servers: Sequence[Address], *, ranks_per_server: int, limit_s: float) -> None:
        self._targets = servers
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
        target = self._targets[index]
        request = urllib.request.Request(
            f"{target.url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {target.key}"},
        )
        with self._lock:
            self._waiting[target.name] = path
        try:
            with urllib.request.urlopen(request, timeout=self._limit_s) as response:
                response.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise WeightSyncError(f"{target.name} answered {path} with {error.code}: {text}") from error
        except OSError as error:
            raise WeightSyncError(f"{target.name} did not answer {path}: {error}") from error
        with self._lock:
            self._waiting.pop(target.name, None)

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
    rest = {key: value for key, value in info.items() if key != "ipc_handles"}
    packed = base64.b64encode(pickle.dumps(info["ipc_handles"])).decode()
    return {**rest, "ipc_handles_pickled": packed}
