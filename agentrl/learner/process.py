"""A learner in processes of its own, one per rank, behind the methods of `Learner`.

Every rank runs each call on the same arguments; the weights are split among them (`Ranks.shard`). Calls
travel through pipes, weights through folders. A rank that dies or stalls is named, and the others are
ended with it: a collective cannot go on without one of its members. No rank outlives this process.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, cast

from agentrl import errors
from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.errors import AgentRLError, ConfigError, LearnerError, LearnerLost, StallError

if TYPE_CHECKING:
    from agentrl.learner.weight_source import WeightLink

GRACE_S = 10.0
"""After one rank fails, how long the others may take to fail or finish too before they are ended."""
POLL_S = 0.2


def _on_every_rank(name: str) -> Callable[..., Any]:
    def call(self: LearnerProcesses, *arguments: Any, **options: Any) -> Any:
        return self._call(name, *arguments, **options)

    call.__doc__ = f"See `Learner.{name}`."
    return call


class LearnerProcesses:
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
        self._limit_s = limit_s
        self._folder = tempfile.TemporaryDirectory(prefix="agentrl-learner-")
        # Forked processes would share the parent's threads and GPU state.
        context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._senders: list[threading.Thread] = []
        # Before multiprocessing's own handler, which waits without a limit for ranks that do not heed it.
        atexit.register(self.kill)
        for rank in range(settings.ranks):
            mine, theirs = context.Pipe()
            arguments = (rank, settings.ranks, self._folder.name, limit_s, theirs)
            learner = ((model_settings, settings, *others), options)
            process = context.Process(
                target=_serve, args=(*arguments, *learner), daemon=True, name=f"agentrl-learner-{rank}"
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)
        try:
            self._collect("become ready", limit_s)
        except LearnerLost as error:  # it would die again
            raise LearnerError(str(error)) from None

    def __enter__(self) -> LearnerProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    step, score, save, load = map(_on_every_rank, ("step", "score", "save", "load"))
    save_weights, publish = _on_every_rank("save_weights"), _on_every_rank("publish")
    weight_bytes = _on_every_rank("weight_bytes")

    def transmit(self, link: WeightLink, label: str) -> None:
        """See `Learner.transmit`; a rank that does not come to it is lost with the others."""
        try:
            # The ranks know better than this process who is missing, so they are given time to say it.
            self._call("transmit", link, label, limit_s=link.limit_s + GRACE_S)
        except StallError as error:
            raise LearnerLost(str(error)) from error

    def close(self) -> None:
        """End the processes. Closing twice is fine."""
        self._send(None, GRACE_S)
        deadline = time.monotonic() + GRACE_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self._end()

    def kill(self) -> None:
        """End the processes at once; from any thread, also in the middle of a call, which then fails."""
        for process in list(self._processes):
            process.kill()

    def _end(self) -> None:
        atexit.unregister(self.kill)
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(GRACE_S)
        # Who still writes to a rank fails now that it is dead; a pipe closed under a write is no OSError.
        for thread in self._senders:
            thread.join(GRACE_S)
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        self._folder.cleanup()

    def _call(self, method: str, *arguments: Any, limit_s: float = 0.0, **options: Any) -> Any:
        if not self._pipes:
            raise LearnerLost("the learner's processes have ended")
        limit_s = limit_s or self._limit_s
        stuck = self._send((method, arguments, options), limit_s)
        if stuck:
            self._end()
            raise StallError(f"learner rank {stuck[0]} to take the call of {method}", limit_s)
        return self._collect(method, limit_s)

    def _send(self, message: Any, limit_s: float) -> list[int]:
        """Send to all ranks; returns those that did not read it. A dead one shows when it should answer."""
        data = ForkingPickler.dumps(message)

        def send(pipe: Connection) -> None:
            with contextlib.suppress(OSError):
                pipe.send_bytes(data)

        # A pipe holds little: who writes more waits for the reader, so each wait has a thread of its own.
        threads = [threading.Thread(target=send, args=(pipe,), daemon=True) for pipe in self._pipes]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + limit_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._senders = [thread for thread in threads if thread.is_alive()]
        return [rank for rank, thread in enumerate(threads) if thread.is_alive()]

    def _collect(self, method: str, limit_s: float) -> Any:
        """The first rank's answer, once every rank has answered."""
        deadline = time.monotonic() + limit_s
        answers: dict[int, tuple[str, Any]] = {}
        while len(answers) < len(self._pipes):
            for rank, pipe in enumerate(self._pipes):
                if rank in answers:
                    continue
                try:
                    if pipe.poll(POLL_S):
                        answers[rank] = pipe.recv()
                except (EOFError, OSError):
                    answers[rank] = ("died", self._death(rank))
                if rank in answers and answers[rank][0] != "done":
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            missing = [rank for rank in range(len(self._pipes)) if rank not in answers]
            if missing and time.monotonic() > deadline:
                self._end()
                self._raise(answers, silent=missing)
                raise StallError(f"learner rank {missing[0]} to {method}", limit_s)
        if any(kind == "died" for kind, _ in answers.values()) or method == "become ready":
            self._raise(answers, end=True)
        self._raise(answers)
        return answers[0][1]

    def _raise(
        self, answers: dict[int, tuple[str, Any]], *, end: bool = False, silent: Sequence[int] = ()
    ) -> None:
        """Raise what a rank reported; a death first, for the others fail because of it."""
        failed = sorted((kind != "died", rank) for rank, (kind, _) in answers.items() if kind != "done")
        if not failed:
            return
        kind, payload = answers[failed[0][1]]
        if end:
            self._end()
        if kind == "died":
            raise LearnerLost(str(payload))
        name, text = cast("tuple[str, str]", payload)
        if name == "LearnerLost":
            self._end()
        if silent:
            text += f" (learner rank {silent[0]} did not answer at all)"
        raise errors.told(name, text, LearnerError)

    def _death(self, rank: int) -> str:
        process = self._processes[rank]
        process.join(1.0)
        return f"learner rank {rank} died (exit code {process.exitcode})"


def _serve(
    rank: int,
    size: int,
    folder: str,
    limit_s: float,
    pipe: Connection,
    arguments: tuple[ModelSettings, Any],
    options: dict[str, Any],
) -> None:
    """The life of one rank: set up, then answer calls until told to stop or left alone."""
    # Both reach the whole process group, and are the run's: it ends its learner when its step is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from agentrl.learner.learner import Learner
    from agentrl.learner.ranks import Ranks

    try:
        model_settings = _own_device(arguments[0], rank)
        ranks = Ranks(rank, size)
        if size > 1:
            gpu = torch.device(model_settings.device).type == "cuda"
            torch.distributed.init_process_group(
                "nccl" if gpu else "gloo",
                init_method=f"file://{folder}/meet",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=limit_s),
            )
            ranks = Ranks.of(rank, size, arguments[1].sequence_parallel)
        learner = Learner(model_settings, *arguments[1:], **options, ranks=ranks)
        pipe.send(("done", None))
        while True:
            with contextlib.suppress(EOFError):  # the parent is gone
                call = pipe.recv()
                if call is not None:
                    pipe.send(_answer(learner, rank, *call))
                    continue
            break
    except Exception as error:  # the parent must learn of it, whatever it is
        pipe.send(_report(rank, error))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    """End this process when its parent is gone, whatever it is doing."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _answer(
    learner: Any, rank: int, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[str, Any]:
    try:
        result = getattr(learner, method)(*arguments, **options)
    except Exception as error:  # the parent must learn of it, whatever it is
        return _report(rank, error)
    return ("done", result if rank == 0 else None)


def _report(rank: int, error: Exception) -> tuple[str, tuple[str, str]]:
    """An error in words: not every exception survives a pipe."""
    if isinstance(error, AgentRLError) and not isinstance(error, StallError):
        return ("failed", (type(error).__name__, str(error)))
    text = "".join(traceback.format_exception(error))
    return ("failed", ("LearnerError", f"learner rank {rank}: {type(error).__name__}: {error}\n{text}"))


def _own_device(settings: ModelSettings, rank: int) -> ModelSettings:
    import dataclasses

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
