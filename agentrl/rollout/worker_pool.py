"""Rollout workers on a cluster, behind one policy: whole episodes are played there, single messages sampled.

Each worker has an engine of its own with a copy of the weights. A worker that is lost costs the episodes
that it was playing; another is started in its place, wherever there is room, and takes the present weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentrl import errors
from agentrl.cluster.log_records import log_again
from agentrl.cluster.ray import WORKER, RayCluster, open_cluster
from agentrl.config import loading
from agentrl.config.settings import Settings
from agentrl.episode import Episode, Failure, SegmentBuilder, StopReason
from agentrl.errors import LearnerLost, PolicyError, PolicyUnavailable, WeightSyncError
from agentrl.inference.policy import GIVES, Generation, Sampling
from agentrl.inference.vllm.transfer import write_module
from agentrl.rollout.exchange import Answer, Ended, Exchange, Start
from agentrl.rollout.sandbox_servers import SandboxServers
from agentrl.rollout.token_completer import Dispatch
from agentrl.rollout.worker import RolloutWorker
from agentrl.weights.handle import WeightHandle
from agentrl.weights.shared_memory import weights_folder
from agentrl.weights.stored_files import StoredFiles, read_files

logger = logging.getLogger(__name__)

ANSWER_LIMIT_S = 20.0
"""Longest wait for what no setting limits: to forget a session, to stop engine and sandbox."""
SANDBOX_LIMIT_S = 60.0
"""Longest wait for a worker to open a session of its sandbox."""
GAUGES = frozenset(("running", "waiting", "sessions", "cache_bytes", "replicas_live"))
"""Statistics of engines that are no counters: of a worker that is gone nothing is left of them."""


@dataclass(eq=False, slots=True)
class Worker:
    """One worker, as it is seen from here."""

    index: int
    actor: Any = None
    pid: int = 0
    """Of its process, on its machine."""
    exchange: Exchange | None = None
    """Its episodes; None until the actor has an engine and a sandbox, which are to be closed."""
    live: bool = False
    playing: int = 0
    lost: int = 0
    revival: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return f"{WORKER} {self.index}"


@dataclass(frozen=True, slots=True)
class _Weights:
    """The newest weights."""

    version: int
    attempt: int
    files: StoredFiles


@contextlib.asynccontextmanager
async def rollout_workers(settings: Settings) -> AsyncIterator[RolloutWorkers]:
    """Workers on a cluster that is theirs alone, started, and closed afterwards.

    Raises:
        ConfigError: the cluster has no room for them.
        PolicyUnavailable: one did not start; says why.
    """
    async with open_cluster(settings) as cluster:
        workers = RolloutWorkers(settings, cluster)
        try:
            await workers.start()
            yield workers
        finally:
            await workers.close()


class RolloutWorkers:
    """A `Policy` that plays whole episodes too.

    Args:
        settings: of the run.
        cluster: with a place for each worker.
    """

    def __init__(self, settings: Settings, cluster: RayCluster) -> None:
        self._settings, self._cluster = settings, cluster
        self._sandboxes: SandboxServers | None = None
        self._workers = [Worker(index) for index in range(settings.cluster.rollout_workers)]
        self._homes: dict[str, Worker] = {}
        self._weights: _Weights | None = None
        self._updating = asyncio.Lock()
        self._changed = asyncio.Event()
        self._statistics: dict[int, dict[str, float]] = {}
        self._ended: dict[str, float] = {}
        self._limits = _limits(settings)
        self._closed = False
        self._watch: asyncio.Future[None] | None = None
        self._on_error: Callable[[Exception], None] = lambda error: None
        self._version = self._context_tokens = 0
        self.gives_top_logprobs = self.gives_prompt_features = False

    @property
    def version(self) -> int:
        """Version that a token sampled now would get."""
        return self._version

    @property
    def context_tokens(self) -> int:
        """Longest sequence, prompt and message together."""
        return self._context_tokens

    async def start(self) -> None:
        """Start every sandbox server, then every worker.

        Raises:
            PolicyUnavailable: one did not start; says why.
        """
        if self._settings.cluster.sandbox_servers:
            self._sandboxes = SandboxServers(self._settings, self._cluster, self._use_sandbox_servers)
            await self._sandboxes.start()
        self._watch = asyncio.ensure_future(self._watch_head())
        found = await asyncio.gather(*map(self._begin, self._workers))
        self._context_tokens = min(one["context_tokens"] for one in found)
        for name in GIVES:
            setattr(self, name, all(one[name] for one in found))
        for worker in self._workers:
            await self._tell_sandbox_servers(worker)
            worker.live = True

    def on_error(self, handler: Callable[[Exception], None]) -> None:
        """Call `handler` when the head is gone: it may be long until somebody asks a worker."""
        self._on_error = handler

    async def _use_sandbox_servers(self) -> None:
        """Tell workers which sandbox servers there are; those that start are told before they are live."""
        for worker in [one for one in self._workers if one.live]:
            actor = worker.actor
            try:
                await self._tell_sandbox_servers(worker)
            except PolicyError as error:
                self._lose(worker, actor, error)

    async def _tell_sandbox_servers(self, worker: Worker) -> None:
        if self._sandboxes is not None:
            await self._told(worker, "use_sandbox_servers", self._sandboxes.urls)

    async def _watch_head(self) -> None:
        try:
            await self._cluster.watch_head()
        except PolicyUnavailable as error:
            logger.error("%s", error)  # at once: what is left of the run may take long to end
            self._on_error(error)
            raise

    def _check_head(self) -> None:
        if self._watch is not None and self._watch.done() and not self._closed:
            self._watch.result()  # raises, where the head is gone

    async def _begin(self, worker: Worker) -> dict[str, Any]:
        """A new actor for a worker, with engine and sandbox; the counters of the one before are kept."""
        worker.exchange = None
        for name, value in self._statistics.pop(worker.index, {}).items():
            if name not in GAUGES:
                self._ended[name] = self._ended.get(name, 0.0) + value
        settings, folder, token = self._settings, str(Path.cwd()), ""
        if self._sandboxes is not None:
            settings, token = self._sandboxes.client_settings(), self._sandboxes.token
        at_once = self._settings.stream.in_flight or self._settings.engine.slots
        worker.actor = self._cluster.place(
            WORKER,
            worker.index,
            RolloutWorker,
            loading.to_toml(settings),
            folder,
            token,
            concurrency=at_once + 64,  # all messages of an evaluation, where it is the last one
        )
        found: dict[str, Any] = await self._told(worker, "start")
        worker.pid, actor = found["pid"], worker.actor

        async def exchange(begin: list[Start], cancel: list[int]) -> list[Ended]:
            return await self._ask(worker, actor, "exchange", begin, cancel)

        worker.exchange = Exchange(exchange)
        return found

    async def _told(self, worker: Worker, method: str, *arguments: Any) -> Any:
        """What a worker answered; its errors are raised here."""
        return _result(worker, await self._ask(worker, worker.actor, method, *arguments))

    async def _ask(self, worker: Worker, actor: Any, method: str, *arguments: Any) -> Any:
        """What a method of a worker's actor gave, within the limit of such a request."""
        limit_s, asked = self._limits[method]
        return await self._cluster.ask(worker.name, actor, method, *arguments, limit_s=limit_s, asked=asked)

    async def play_episode(self, dispatch: Dispatch, environment: int, row: Mapping[str, Any]) -> Episode:
        """Play an episode on the worker with the fewest; one whose worker is lost has failed.

        See `Policy`. A worker without an engine or a sandbox fails every episode at once and would be the
        least loaded for ever: it is started again.
        """
        worker = await self._least_loaded()
        actor = worker.actor
        worker.playing += 1
        try:
            episode: Episode = await self._played(worker, dispatch, environment, row)
        except PolicyUnavailable as error:
            self._lose(worker, actor, error)
            return self._lost(dispatch, error)
        finally:
            worker.playing -= 1
        if defect := await self._defect(worker, episode.failure):
            self._lose(worker, actor, PolicyUnavailable(defect))
        return episode

    async def _played(
        self, worker: Worker, dispatch: Dispatch, environment: int, row: Mapping[str, Any]
    ) -> Episode:
        assert worker.exchange is not None, "the worker was not started"
        limit_s, asked = self._limits["exchange"]
        try:
            async with asyncio.timeout(limit_s):
                answer = await worker.exchange.play(dispatch, environment, row)
        except TimeoutError:
            raise PolicyUnavailable(f"waited {limit_s:.0f} s for {worker.name} to {asked}") from None
        episode: Episode = _result(worker, answer)
        return episode

    async def _defect(self, worker: Worker, failure: Failure | None) -> str:
        """What is wrong with a worker of which an episode failed; empty where it was the episode."""
        if failure is None or not worker.live:
            return ""
        if (failure.boundary, failure.error) == ("policy", "PolicyUnavailable"):
            return f"{worker.name}: {failure.message}"
        if failure.boundary == "sandbox":
            try:
                await self._told(worker, "check_sandbox")
            except PolicyError as error:
                return str(error)
        return ""

    def _lost(self, dispatch: Dispatch, error: PolicyUnavailable) -> Episode:
        return Episode(
            episode_id=dispatch.episode_id,
            dispatch_index=dispatch.dispatch_index,
            prompt_id=dispatch.prompt_id,
            segments=(SegmentBuilder().build(),),
            turns=(),
            reward=None,
            stop_reason=StopReason.FAILED,
            failure=Failure("policy", "WorkerLost", str(error)),
            start_version=dispatch.start_version,
            temperature=self._settings.rollout.temperature,
            environment=dispatch.environment,
            group=dispatch.group,
        )

    async def _least_loaded(self) -> Worker:
        self._check_head()
        deadline = time.monotonic() + self._settings.cluster.start_limit_s
        while not (live := [worker for worker in self._workers if worker.live]):
            if self._closed or time.monotonic() > deadline:
                raise PolicyUnavailable(
                    "the rollout workers are closed"
                    if self._closed
                    else f"no rollout worker was live for {self._settings.cluster.start_limit_s:.0f} s "
                    "(cluster.start_limit_s)"
                )
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)
            self._check_head()
        return min(live, key=lambda worker: worker.playing)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str, start_version: int
    ) -> Generation:
        """Sample one message on the worker of the session; see `Policy.generate`."""
        self._check_head()
        worker = self._homes.get(session)
        if worker is None or not worker.live:
            worker = self._homes[session] = await self._least_loaded()
        actor = worker.actor
        worker.playing += 1
        try:
            return await self._told(worker, "generate", list(prompt_ids), sampling, session, start_version)
        except PolicyUnavailable as error:
            self._lose(worker, actor, error)
            raise
        finally:
            worker.playing -= 1

    async def release(self, session: str) -> None:
        """Forget a session; a worker that does not answer is lost."""
        worker = self._homes.pop(session, None)
        if worker is None or not worker.live:
            return
        actor = worker.actor
        try:
            await self._told(worker, "release", session)
        except PolicyUnavailable as error:
            # Of a message the episode's limit comes first: only here it shows that the worker stands still.
            self._lose(worker, actor, error)
        except PolicyError as error:
            logger.warning("%s", error)

    async def load(self, weights: WeightHandle) -> None:
        """Put the weights into the object store once, and let every worker take them.

        Where all workers are lost meanwhile, the first that comes back is waited for.

        Raises:
            LearnerLost: they were lost with the machine of the learner's first rank.
            WeightSyncError: no worker took them.
        """
        async with self._updating:
            files = await asyncio.to_thread(self._stored, weights.source)
            self._weights = _Weights(weights.version, weights.attempt, files)
            live = [(worker, worker.actor) for worker in self._workers if worker.live]
            results = await asyncio.gather(
                *(self._update(worker) for worker, _ in live), return_exceptions=True
            )
            if live and all(isinstance(result, BaseException) for result in results):
                await asyncio.to_thread(self._check, self._weights)
            for (worker, actor), result in zip(live, results, strict=True):
                if isinstance(result, BaseException):
                    self._lose(worker, actor, result)
        try:
            await self._least_loaded()  # one that comes back takes the newest weights before it is live
        except PolicyUnavailable as error:
            reasons = [str(one) for one in results if isinstance(one, BaseException)]
            reason = "; ".join([str(error), *reasons[:1]])
            raise WeightSyncError(f"no rollout worker took version {weights.version}: {reason}") from error
        self._version = weights.version

    def _stored(self, source: Any) -> StoredFiles:
        """Weights in the object store; those of a learner on the cluster are there."""
        if isinstance(source, StoredFiles):
            return source
        names, arrays = _read_weights(source, self._settings.model.path)
        return StoredFiles(names, tuple(self._cluster.keep(arrays)))

    def _check(self, weights: _Weights) -> None:
        """Whether weights are still in the object store, when no worker could take them."""
        try:
            for reference in weights.files.references:
                self._cluster.value(reference)
        except EOFError as error:
            raise LearnerLost(f"the weights of version {weights.version} are lost: {error}") from error

    async def _update(self, worker: Worker) -> None:
        weights = self._weights
        if weights is None:
            return
        arguments = (weights.version, weights.attempt, weights.files.names, *weights.files.references)
        self._statistics[worker.index], warnings = await self._told(worker, "load", *arguments)
        log_again(worker.name, warnings)

    def _lose(self, worker: Worker, actor: Any, error: BaseException) -> None:
        """A worker failed: it gets nothing more, and another is started in its place.

        Args:
            worker: whose actor failed.
            actor: the one that failed; another may be in its place by now, to which nothing is done.
            error: what it said.
        """
        if not worker.live or worker.actor is not actor or self._closed:
            return
        worker.live, worker.lost = False, worker.lost + 1
        logger.warning("%s; it is started again", error)
        worker.revival = asyncio.ensure_future(self._revive(worker))

    async def _revive(self, worker: Worker) -> None:
        async def begin() -> None:
            await self._begin(worker)
            async with self._updating:
                await self._update(worker)
                await self._tell_sandbox_servers(worker)
                worker.live = True

        await self._cluster.start_again(worker.name, lambda: worker.actor, begin)
        self._changed.set()

    async def close(self) -> None:
        """End the workers; episodes that they play are lost."""
        self._closed = True
        self._changed.set()
        tasks = [worker.revival for worker in self._workers]
        waiting = [task for task in (*tasks, self._watch) if task is not None]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(self._end(worker) for worker in self._workers if worker.actor is not None))
        if self._sandboxes is not None:
            await self._sandboxes.close()

    async def _end(self, worker: Worker) -> None:
        if worker.exchange is not None:
            worker.exchange.close()
            if not self._cluster.headless:
                try:
                    log_again(worker.name, await self._told(worker, "close"))
                except PolicyError as error:
                    logger.warning("%s; it is killed", error)
        worker.live = False
        self._cluster.end(worker.actor)

    def statistics(self) -> dict[str, float]:
        """Sums over the workers at the newest update, and `workers_live`, `workers_lost`.

        What a lost worker had counted stays in the sums.
        """
        total = dict(self._ended)
        for told in self._statistics.values():
            for name, value in told.items():
                total[name] = total.get(name, 0.0) + value
        total["workers_live"] = sum(worker.live for worker in self._workers)
        total["workers_lost"] = sum(worker.lost for worker in self._workers)
        return total


def _result(worker: Worker, answer: Answer) -> Any:
    """What a worker answered; its errors are raised here."""
    kind, value = answer
    if kind == "done":
        return value
    raise errors.told(kind, f"{worker.name}: {value}", PolicyError)


def _limits(settings: Settings) -> dict[str, tuple[float, str]]:
    """By method of a worker: the longest wait in seconds, and what is asked, for errors."""
    episode_s = settings.rollout.limit_s
    return {
        "start": (settings.cluster.start_limit_s, "start engine and sandbox (cluster.start_limit_s)"),
        "load": (settings.engine.update_limit_s, "take new weights (engine.update_limit_s)"),
        # An episode ends by itself within its limit: a worker that says nothing for so long is stuck.
        "exchange": (2 * episode_s + 60, "play an episode (twice rollout.limit_s and a minute)"),
        "generate": (episode_s, "sample a message (rollout.limit_s)"),
        "check_sandbox": (SANDBOX_LIMIT_S, "open a session of its sandbox"),
        "use_sandbox_servers": (SANDBOX_LIMIT_S, "reach the sandbox servers"),
        "release": (ANSWER_LIMIT_S, "forget a session"),
        "close": (ANSWER_LIMIT_S, "stop engine and sandbox"),
    }


def _read_weights(source: Any, base: str) -> tuple[tuple[str, ...], list[np.ndarray[Any, Any]]]:
    """The files of a module, of a folder or of a file, as bytes; a module's pass through shared memory."""
    if isinstance(source, str | Path):
        return read_files(Path(source))
    folder = weights_folder()
    try:
        target = folder / ("adapter" if hasattr(source, "agentrl_adapter") else "model.safetensors")
        write_module(source, target, base)
        return read_files(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
