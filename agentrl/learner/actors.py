"""Learner ranks as actors of a Ray cluster, on one machine or on several.

Ray places them and tells when one is gone. Weights leave through its object store: nothing passes a disk.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from agentrl.cluster.log_records import LogRecords, Told, log_again
from agentrl.cluster.ray import RANK, RayCluster
from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.errors import ConfigError, LearnerError, StallError
from agentrl.learner.remote import Answer, RankSetup, RemoteLearner, answer, join, report
from agentrl.weights.shared_memory import weights_folder
from agentrl.weights.stored_files import StoredFiles, read_files

TO_FOLDERS = ("save", "load", "save_weights")
"""Methods that write or read in the folder of the run."""


class LearnerRank:
    """The actor of one rank: its methods run one after the other, in the process that Ray gave it.

    Args:
        folder: where the run was started, from which relative paths count; it may not exist here.
    """

    def __init__(self, folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        self._records = LogRecords()
        self._learner: Any = None
        self._rank = 0

    def meeting_place(self) -> str:
        """An address on this machine at which all ranks can meet, as `torch.distributed` has it."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def start(self, setup: RankSetup) -> tuple[Answer, list[Told]]:
        """Load the model and meet the other ranks; see `join`. Gives the number of this process."""
        self._rank = setup.rank
        try:
            self._learner = join(setup, _lent_device(setup.arguments[0]))
            told: Answer = ("done", os.getpid())
        except Exception as error:  # the run must learn of it, whatever it is
            told = report(setup.rank, error)
        return told, self._records.take()

    def run(self, message: tuple[str, tuple[Any, ...], dict[str, Any]]) -> tuple[Answer, list[Told]]:
        """Run a method of `Learner`; its answer, and what was logged meanwhile."""
        return self._answer(*message), self._records.take()

    def _answer(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Answer:
        if method == "store":
            return self._store()
        if method in TO_FOLDERS and not (home := Path(arguments[0]).parent).is_dir():
            text = f"{RANK} {self._rank} on {socket.gethostname()} does not see {home.absolute()}: the "
            text += "folder of a run must be on a file system that all machines share"
            return report(self._rank, LearnerError(text))
        return answer(self._learner, self._rank, method, arguments, options)

    def _store(self) -> Answer:
        """Put what an engine needs of the present weights into the object store, through shared memory."""
        import ray

        folder = weights_folder()
        try:
            told = answer(self._learner, self._rank, "publish", (folder / "weights",), {})
            if told[0] != "done" or self._rank:
                return told
            names, arrays = read_files(folder / "weights")
            return ("done", StoredFiles(names, tuple(ray.put(array) for array in arrays)))
        except Exception as error:  # the run must learn of it, whatever it is
            return report(self._rank, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lent_device(settings: ModelSettings) -> ModelSettings:
    """The GPU that Ray lent this actor, which sees no other; the cores where it lent none."""
    import ray

    if settings.device not in ("auto", "cuda"):
        return settings
    if ray.get_gpu_ids():
        return dataclasses.replace(settings, device="cuda:0")
    if settings.device == "cuda":
        raise ConfigError("model.device = 'cuda' needs cluster.learner_gpus = 1: Ray lent this rank no GPU")
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
        return self._cluster.is_there(self._reference, seconds)

    def receive(self) -> Answer:
        """See `RankHandle.receive`."""
        told, records = self._cluster.value(self._reference)
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
        place = self._meeting_place(ranks[0], start_limit_s)
        for rank, actor in enumerate(ranks):
            learner = (model_settings, settings, *others)
            actor.begin(RankSetup(rank, settings.ranks, place, limit_s, learner, options))
        super().__init__(ranks, self._keep, limit_s)

    def store(self) -> StoredFiles:
        """Put what an engine needs of the present weights into the cluster's object store."""
        return self._call("store")

    def _meeting_place(self, first: RankActor, limit_s: float) -> str:
        asked = self._cluster.call(first.actor, "meeting_place")
        if not self._cluster.is_there(asked, limit_s):
            raise StallError(f"{RANK} 0 to start on the cluster (cluster.start_limit_s)", limit_s)
        try:
            return self._cluster.value(asked)
        except EOFError as error:
            raise LearnerError(f"{RANK} 0 died before it was ready: {error}") from error

    def _keep(self, message: Any) -> Any:
        """A call goes into the object store once, for all ranks."""
        return None if message is None else self._cluster.keep([message])[0]
