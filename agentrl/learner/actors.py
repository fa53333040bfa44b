"""Learner ranks as actors of a Ray cluster, on one machine or on several.

Ray places them and tells when one is gone. Weights leave through its object store: nothing passes a disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import socket
import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.cluster.log_records import LogRecords, Told, log_again
from agentrl.cluster.ray import RANK, RayCluster, hide_gpus_not_lent
from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.errors import ConfigError, LearnerError, LearnerLost, StallError
from agentrl.learner.remote import Answer, RankSetup, RemoteLearner, answer, join, report
from agentrl.weights.shared_memory import weights_folder
from agentrl.weights.stored_files import StoredFiles

TO_FOLDERS = ("save", "load", "save_weights")
"""Methods that write or read in the folder of the run."""
SIOCGIFADDR = 0x8915
"""Linux: asks for the address of an interface."""


class LearnerRank:
    """The actor of one rank: its methods run one after the other, in the process that Ray gave it.

    Args:
        folder: where the run was started, from which relative paths count; it may not exist here.
    """

    def __init__(self, folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        hide_gpus_not_lent()
        self._records = LogRecords()
        self._learner: Any = None
        self._store: Any = None
        self._folder: Path | None = None
        self._rank = 0

    def meeting_place(self, size: int, limit_s: float) -> str:
        """Open the store at which all ranks meet, on this machine; HOST:PORT."""
        import ray
        from torch.distributed import TCPStore

        host = ray.util.get_node_ip_address()
        limit = timedelta(seconds=limit_s)
        self._store = TCPStore(host, 0, size, is_master=True, timeout=limit, wait_for_workers=False)
        return f"{host}:{self._store.port}"

    def start(self, setup: RankSetup) -> tuple[Answer, list[Told]]:
        """Load the model and meet the other ranks; see `join`."""
        self._rank = setup.rank
        try:
            _speak_by_the_cluster_s_interface()
            model = _lent_device(setup.arguments[0])
            self._learner = join(setup, model, self._store or _store_of(setup))
            told: Answer = ("done", None)
        except Exception as error:  # the run must learn of it, whatever it is
            told = report(setup.rank, error)
        return told, self._records.take()

    def run(self, message: tuple[str, tuple[Any, ...], dict[str, Any]]) -> tuple[Answer, list[Told]]:
        """Run a method of `Learner`; its answer, and what was logged meanwhile."""
        return self._answer(*message), self._records.take()

    def _answer(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Answer:
        if method == "write_files":
            return self._write_files()
        if method in TO_FOLDERS and not (home := Path(arguments[0]).parent).is_dir():
            text = f"{RANK} {self._rank} on {socket.gethostname()} does not see {home.absolute()}: the "
            text += "folder of a run must be on a file system that all machines share"
            return report(self._rank, LearnerError(text))
        return answer(self._learner, self._rank, method, arguments, options)

    def _write_files(self) -> Answer:
        """Write what an engine needs of the weights into shared memory; the first rank names the files."""
        try:
            self._forget()
            # Others write nothing here: they gather for the first rank.
            self._folder = weights_folder(room=0 if self._rank else self._learner.publish_bytes())
            told = answer(self._learner, self._rank, "publish", (self._folder / "weights",), {})
            if told[0] != "done" or self._rank:
                return told
            return ("done", tuple(sorted(file.name for file in (self._folder / "weights").iterdir())))
        except Exception as error:  # the run must learn of it, whatever it is
            return report(self._rank, error)

    def read_file(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a written file, which is deleted."""
        assert self._folder is not None, "no files were written"
        file = self._folder / "weights" / name
        data = np.fromfile(file, dtype=np.uint8)
        file.unlink()
        return data

    def _forget(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _store_of(setup: RankSetup) -> Any:
    """The store that the first rank opened."""
    from torch.distributed import TCPStore

    host, _, port = setup.place.rpartition(":")
    return TCPStore(host, int(port), setup.size, is_master=False, timeout=timedelta(seconds=setup.limit_s))


def _speak_by_the_cluster_s_interface() -> None:
    """Let gloo and NCCL speak by the interface that Ray knows this machine by.

    gloo would take the address of the machine's name, which many systems set to their loopback.
    """
    import ray

    try:
        address = socket.inet_aton(ray.util.get_node_ip_address())
    except OSError:
        return  # of IPv6, whose interfaces are not told this way
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                found = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if found[20:24] == address:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                    os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _lent_device(settings: ModelSettings) -> ModelSettings:
    """The GPU that Ray lent this actor, which sees no other; the cores where it lent none."""
    import ray

    if settings.device not in ("auto", "cuda"):
        return settings
    if ray.get_gpu_ids():
        return dataclasses.replace(settings, device="cuda:0")
    if settings.device == "cuda" or ray.cluster_resources().get("GPU"):
        raise ConfigError(
            f"model.device = {settings.device!r} needs cluster.learner_gpus = 1: Ray lent this rank no GPU; "
            "model.device = 'cpu' learns on cores"
        )
    return dataclasses.replace(settings, device="cpu")


class RankActor:
    """A rank that is an actor; see `RankHandle`."""

    def __init__(self, cluster: RayCluster, index: int) -> None:
        self._cluster, self._name = cluster, f"{RANK} {index}"
        self.actor = cluster.place(RANK, index, LearnerRank, str(Path.cwd()))
        self._reference: Any = None

    def begin(self, setup: RankSetup) -> None:
        """Let it load the model."""
        self._reference = self._cluster.call(self.actor, "start", setup)

    def send(self, message: Any) -> None:
        """See `RankHandle.send`."""
        if message is not None:
            self._reference = self._cluster.call(self.actor, "run", message)

    def poll(self, seconds: float) -> bool:
        """See `RankHandle.poll`."""
        return self._reference is None or self._cluster.is_there(self._reference, seconds)

    def receive(self) -> Answer:
        """See `RankHandle.receive`."""
        reference, self._reference = self._reference, None  # an answer is given once
        if reference is None:
            raise EOFError("it could not be called")
        told, records = self._cluster.value(reference)
        log_again(self._name, records)
        return told

    def kill(self) -> None:
        """See `RankHandle.kill`."""
        self._cluster.end(self.actor)

    def close(self, limit_s: float) -> None:
        """Nothing is under way any more: it is killed."""
        self.kill()


class LearnerActors(RemoteLearner):
    """`Learner` on actors of a cluster; `close` it, or use it as a context.

    Args:
        cluster: with a place for each rank.
        start_limit_s: longest wait for the first actor's process.
        others: arguments, options and errors are those of `LearnerProcesses`.
    """

    def __init__(
        self,
        cluster: RayCluster,
        model_settings: ModelSettings,
        settings: LearnerSettings,
        *others: Any,
        start_limit_s: float,
        limit_s: float = 1800.0,
        **options: Any,
    ) -> None:
        self._cluster = cluster
        ranks = [RankActor(cluster, rank) for rank in range(settings.ranks)]
        self._first = ranks[0].actor
        place = self._meeting_place(settings.ranks, start_limit_s, limit_s)
        for rank, actor in enumerate(ranks):
            learner = (model_settings, settings, *others)
            actor.begin(RankSetup(rank, settings.ranks, place, limit_s, learner, options))
        super().__init__(ranks, self._keep, limit_s)

    def store(self) -> StoredFiles:
        """Put what an engine needs of the present weights into the cluster's object store.

        The run owns them, so that they outlive the rank that wrote them, though not its machine.
        """
        names = self._call("write_files")
        files = [self._cluster.call(self._first, "read_file", name) for name in names]
        for name, file in zip(names, files, strict=True):
            if not self._cluster.is_there(file, self._limit_s):
                raise LearnerLost(f"waited {self._limit_s:.0f} s for {RANK} 0 to store {name}")
        return StoredFiles(names, tuple(files))

    def _meeting_place(self, size: int, start_limit_s: float, limit_s: float) -> str:
        asked = self._cluster.call(self._first, "meeting_place", size, limit_s)
        if not self._cluster.is_there(asked, start_limit_s):
            raise StallError(f"{RANK} 0 to start on the cluster (cluster.start_limit_s)", start_limit_s)
        try:
            return self._cluster.value(asked)
        except EOFError as error:
            raise LearnerError(f"{RANK} 0 died before it was ready: {error}") from error

    def _keep(self, message: Any) -> Any:
        """A call goes into the object store once, for all ranks."""
        return None if message is None else self._cluster.keep([message])[0]
