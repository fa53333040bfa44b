"""The learner behind the orchestrator's interface: one thread of this process.

All calls run one after another in the thread, so that weights are never read while a step changes
them. The interface is the same for learners in processes of their own. The thread is a daemon: a step
that hangs does not keep the program from ending. Knows nothing of torch: it only passes episodes,
arrays, paths and handles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import shutil
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from agentrl.episode import Episode
from agentrl.learner.batch import Advantages
from agentrl.weights.handle import WeightHandle
from agentrl.weights.shared_memory import weights_folder

if TYPE_CHECKING:
    from agentrl.learner.learner import Learner
    from agentrl.learner.remote import RemoteLearner
    from agentrl.learner.weight_source import WeightLink

T = TypeVar("T")
logger = logging.getLogger(__name__)

CLOSE_LIMIT_S = 15.0
"""Longest wait for a learner to stop."""


class AsyncLearner(Protocol):
    """What the orchestrator asks of a learner."""

    async def step(
        self, episodes: Sequence[Episode], advantages: Advantages, *, clock_tokens: int, **more: Any
    ) -> dict[str, Any]:
        """Learn from one batch; returns its metrics, and `token_values` (`TokenValues`).

        More, where a part asks for it: `values` and `controls`, see `Learner.step`.
        `drift` among them: mean |difference of log-probability| over up to `clock_tokens` tokens, nats.
        """
        ...

    async def score(self, episodes: Sequence[Episode]) -> list[list[NDArray[np.float32]]]:
        """Log-probabilities [T] of each segment of each episode under the present weights."""
        ...

    async def save(self, folder: Path, *, wait: bool = True) -> None:
        """Write weights, optimizer and counters into `folder`; without `wait` from a copy, as steps go on."""
        ...

    async def saved(self) -> bool:
        """Whether what `save` did not wait for is on disk."""
        ...

    async def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    async def save_weights(self, folder: Path) -> None:
        """Write Hugging Face weights and tokenizer into `folder`."""
        ...

    async def handle(self, version: int, attempt: int) -> WeightHandle:
        """Where an engine finds the present weights; good until the next step."""
        ...

    async def close(self) -> None:
        """Stop."""
        ...


def _in_the_thread(name: str) -> Callable[..., Any]:
    async def call(self: LearnerThread, *arguments: Any, **options: Any) -> Any:
        return await self._run(getattr(self._learner, name), *arguments, **options)

    call.__doc__ = f"See `AsyncLearner.{name}`."
    return call


@dataclass(frozen=True, slots=True)
class RemoteWeights:
    """The weights of a learner in other processes, which sends them itself."""

    run: Callable[..., Awaitable[Any]]
    """In the learner's thread."""
    learner: RemoteLearner

    async def transmit(self, link: WeightLink, label: str) -> None:
        """See `Learner.transmit`."""
        await self.run(self.learner.transmit, link, label)


class LearnerThread:
    """A `Learner`, or the processes of one, called from a thread of its own.

    Args:
        learner: has the methods of `Learner`.
        live: whether the engine takes weights from device to device; else processes write files for it.
    """

    def __init__(self, learner: Learner | RemoteLearner, *, live: bool = False) -> None:
        self._learner, self._live = learner, live
        self._folder: Path | None = None
        """In shared memory, for weights of a learner in other processes."""
        self._published: list[Path] = []
        """The newest two."""
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="agentrl-learner", daemon=True).start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # handed to who awaits it
                    future.set_exception(error)

    async def _run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*arguments, **options)))
        return await asyncio.wrap_future(future)

    async def step(
        self, episodes: Sequence[Episode], advantages: Advantages, *, clock_tokens: int, **more: Any
    ) -> dict[str, Any]:
        """Learn from one batch."""
        metrics = await self._run(self._learner.step, episodes, advantages, clock_tokens=clock_tokens, **more)
        return metrics.as_dict() | {"token_values": metrics.token_values}

    score, save, saved, load = map(_in_the_thread, ("score", "save", "saved", "load"))
    save_weights = _in_the_thread("save_weights")

    async def handle(self, version: int, attempt: int) -> WeightHandle:
        """The live model; where it lives in other processes, what sends its weights from there, or files
        of its adapter or of all weights: in a cluster's object store, or in a folder."""
        source = getattr(self._learner, "model", None)
        if source is None and self._live:
            source = RemoteWeights(self._run, cast("RemoteLearner", self._learner))
        elif source is None and (store := getattr(self._learner, "store", None)):
            source = await self._run(store)
        elif source is None:
            source = await self._publish(f"{attempt}.{version}")
        return WeightHandle(version=version, attempt=attempt, source=source)

    async def _publish(self, name: str) -> Path:
        """Write the weights into shared memory; those before stay, for a server that starts again."""
        if self._folder is None:
            room = 2 * await self._run(self._learner.publish_bytes)
            self._folder = await asyncio.to_thread(weights_folder, room=room)
        target = self._folder / name
        kept = [folder for folder in self._published if folder != target][-1:]
        for folder in {*self._published} - {*kept, target}:
            await asyncio.to_thread(shutil.rmtree, folder)
        self._published = [*kept, target]
        await self._run(self._learner.publish, target)
        return target

    async def close(self) -> None:
        """Stop after what is under way; past the limit the processes of a learner are killed."""
        close = getattr(self._learner, "close", lambda: None)
        try:
            await asyncio.wait_for(self._run(close), CLOSE_LIMIT_S)
        except TimeoutError:
            await self._abort()
        self._calls.put(None)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _abort(self) -> None:
        kill = getattr(self._learner, "kill", None)
        if kill is None:
            logger.warning("the learner did not stop within %.0f s; its step is left behind", CLOSE_LIMIT_S)
            return
        logger.warning("the learner did not stop within %.0f s; its processes are killed", CLOSE_LIMIT_S)
        await asyncio.to_thread(kill)
        # The call under way sees their death and ends.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._run(lambda: None), CLOSE_LIMIT_S)
