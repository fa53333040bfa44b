"""Learner ranks in processes of this machine, which are called through pipes. None outlives this process."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import tempfile
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.errors import ConfigError
from agentrl.learner.remote import GRACE_S, Answer, RankSetup, RemoteLearner, answer, join, report


class RankProcess:
    """A rank in a process of its own; see `RankHandle`.

    Args:
        setup: which, and of what.
    """

    def __init__(self, setup: RankSetup) -> None:
        # Forked processes would share the parent's threads and GPU state.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, setup), daemon=True, name=f"agentrl-learner-{setup.rank}"
        )
        self._process.start()
        self.pid = self._process.pid
        theirs.close()

    def send(self, message: Any) -> None:
        """A pipe holds little: who writes more waits for the reader."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(message)

    def poll(self, seconds: float) -> bool:
        """See `RankHandle.poll`."""
        try:
            return self._pipe.poll(seconds)
        except OSError:
            return True

    def receive(self) -> Answer:
        """See `RankHandle.receive`."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1.0)
            raise EOFError(f"exit code {self._process.exitcode}") from None

    def kill(self) -> None:
        """See `RankHandle.kill`."""
        self._process.kill()

    def close(self, limit_s: float) -> None:
        """See `RankHandle.close`."""
        self._process.join(limit_s)
        if self._process.is_alive():
            self._process.kill()
        self._process.join(GRACE_S)


class LearnerProcesses(RemoteLearner):
    """`Learner` on several processes; `close` it, or use it as a context.

    Args:
        model_settings: see `Learner`; with several GPUs, rank r takes GPU r.
        settings: see `Learner`; of them `ranks` says how many processes.
        others: see `Learner`.
        limit_s: longest wait for one call.
        options: see `Learner`.

    Raises:
        ConfigError: the model cannot be loaded, or a setting makes no sense.
        StallError: a rank did not become ready within the limit.
        LearnerError: a rank died before it was ready.
    """

    def __init__(
        self,
        model_settings: ModelSettings,
        settings: LearnerSettings,
        *others: Any,
        limit_s: float = 1800.0,
        **options: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="agentrl-learner-")
        learner = (model_settings, settings, *others)
        meet = (settings.ranks, f"file://{self._folder.name}/meet", limit_s)
        setups = (RankSetup(rank, *meet, learner, options) for rank in range(settings.ranks))
        super().__init__(map(RankProcess, setups), ForkingPickler.dumps, limit_s)

    def _end(self, limit_s: float = 0.0) -> None:
        super()._end(limit_s)
        self._folder.cleanup()


def _serve(pipe: Connection, setup: RankSetup) -> None:
    """The life of one rank: set up, then answer calls until told to stop or left alone."""
    # Both reach the whole process group, and are the run's: it ends its learner when its step is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    try:
        learner = join(setup, _own_device(setup.arguments[0], setup.rank))
        pipe.send(("done", None))
        while True:
            with contextlib.suppress(EOFError):  # the parent is gone
                call = pipe.recv()
                if call is not None:
                    pipe.send(answer(learner, setup.rank, *call))
                    continue
            break
    except Exception as error:  # the parent must learn of it, whatever it is
        pipe.send(report(setup.rank, error))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    """End this process when its parent is gone, whatever it is doing."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _own_device(settings: ModelSettings, rank: int) -> ModelSettings:
    import torch

    if settings.device not in ("auto", "cuda"):
        return settings
    if not torch.cuda.is_available():
        return dataclasses.replace(settings, device="cpu")
    if rank >= torch.cuda.device_count():
        raise ConfigError(
            f"learner.ranks needs a GPU for rank {rank} and there are {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(rank)
    return dataclasses.replace(settings, device=f"cuda:{rank}")
