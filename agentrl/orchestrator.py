"""The clock of a run: policy version, order of shutdown, moment of the checkpoint.

One batch after the other: take it from the buffer, read all its baselines, let the learner step,
publish the new version while episodes go on, fold the batch in order of dispatch. The orchestrator
wires streams, dispatcher, buffer, learner and engine; it does no mathematics and imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agentrl.audit import BiasAudit
from agentrl.buffer import EpisodeBuffer
from agentrl.checkpoint import RunState, commit, write_state
from agentrl.credit import Assignment, Credit, shuffled
from agentrl.dispatcher import Dispatcher
from agentrl.drift_replay import DriftReplay
from agentrl.episode import Episode
from agentrl.errors import AgentRLError, Interrupted, StallError
from agentrl.history import History
from agentrl.inference.policy import Policy
from agentrl.initial_values import InitialStream, needs_initial_rollouts, read_initial_file
from agentrl.learner_thread import AsyncLearner
from agentrl.ledger import Ledger
from agentrl.metrics import MetricsWriter, Totals, describe_batch
from agentrl.processor_time import cpu_seconds
from agentrl.prompts import PromptPool
from agentrl.recorder import EpisodeRecorder
from agentrl.rollout import Dispatch
from agentrl.run_folder import RunFolder
from agentrl.settings import Settings
from agentrl.spo.advantage import Estimator
from agentrl.spo.calibration import brier_score, log_loss
from agentrl.spo.value_tracker import Fold
from agentrl.streams import TrainingStream
from agentrl.watchdog import Watchdog

T = TypeVar("T")
logger = logging.getLogger(__name__)

Play = Callable[[Dispatch], Awaitable[Episode]]
Evaluate = Callable[[int, int, Callable[[], None]], Awaitable[dict[str, Any]]]
"""From (version, index of the evaluation, what to call after each of its episodes) to a row of metrics."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; `agentrl.train` builds it from settings, tests build it by hand."""

    folder: RunFolder
    pool: PromptPool
    policy: Policy
    learner: AsyncLearner
    estimator: Estimator
    ledger: Ledger
    recorder: EpisodeRecorder
    metrics: MetricsWriter
    watchdog: Watchdog
    play: Play
    evaluate: Evaluate | None = None
    before_start: Callable[[int], Awaitable[Any]] | None = None
    """Called with the first version before anything is played (the parity gate)."""
    after_update: Callable[[int], Awaitable[None]] | None = None
    """Called after each published version (the parity gate)."""
    shuffle_rewards: bool = False
    """A control: rewards are shuffled among the episodes of each batch before anything is learned."""


class Orchestrator:
    """Runs one attempt of a run, from a version to the last step."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings, self.parts = settings, parts
        stream = settings.stream
        self.version = 0
        self.attempt = 1
        self.credit = Credit(settings, parts.pool, parts.estimator)
        self.totals = Totals()
        self.buffer = EpisodeBuffer(
            batch=stream.batch,
            staleness=0 if settings.run.deterministic else stream.staleness,
            stale_policy=stream.stale_policy,
            unit=parts.estimator.group_size,
            keep=self.credit.keeps if settings.estimator.dynamic_sampling else None,
        )
        self.stream = TrainingStream(
            pool=parts.pool,
            buffer=self.buffer,
            ledger=parts.ledger,
            recorder=parts.recorder,
            seed=settings.run.seed,
            group_size=parts.estimator.group_size,
            total=settings.run.steps * stream.batch,
            fold=self.credit.fold_one,
            quarantine_after=settings.sampler.quarantine_after,
            in_order=settings.run.deterministic,
        )
        self.dispatcher = Dispatcher(self.stream, parts.play, stream.in_flight or settings.engine.slots)
        self.stream.wake = self.dispatcher.wake
        self.stream.observe = self._observe
        self.audit = BiasAudit()
        self.replay = DriftReplay(parts.learner) if settings.tracker.drift == "replay" else None
        self._stop = asyncio.Event()
        self._between_steps = asyncio.Event()
        self._between_steps.set()
        self._failed: asyncio.Future[None] | None = None
        self._started = time.monotonic()
        self.initialised = False
        self.history: History | None = None  # what a resumed run still has to redo
        self.begun = False  # initial values and the first evaluation are done
        self.earlier_s = self.earlier_cpu_s = 0.0  # of earlier attempts
        self._idle_s = 0.0
        self._training_began = 0.0, 0
        self.evaluations = 0
        parts.recorder.on_error(self._fail)

    # ------------------------------------------------------------------ control

    def stop(self) -> None:
        """Ask for a clean end: what is finished is saved, the rest is pending for a resumed run."""
        self._stop.set()

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def run(self) -> None:
        """Run to the last step.

        Raises:
            Interrupted: `stop` was called; a checkpoint was written.
            AgentRLError: something could not go on; says what and how to continue.
        """
        self._failed = asyncio.get_running_loop().create_future()
        self._started = time.monotonic()
        self.parts.watchdog.start()
        if self.parts.ledger.attempt == 0:
            self.attempt = self.parts.ledger.begin_attempt(self.version)
        work = asyncio.ensure_future(self._work())
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((work, stop, self._failed), return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not self._failed.done():
                # A step under way is finished and recorded: only waiting may be cut short.
                await self._between_steps.wait()
            if self._failed.done():
                self._failed.result()
            if work.done():
                work.result()
                if stop.done() and self.version < self.settings.run.steps:
                    await self._interrupt(work)
            elif self.version < self.settings.run.steps:
                await self._interrupt(work)
            else:
                # All steps are done: what is left is the end of the run, and it is not cut short.
                await asyncio.wait((work, self._failed), return_when=asyncio.FIRST_COMPLETED)
                (work if work.done() else self._failed).result()
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            await self._end(self.dispatcher)
            self._failed.cancel()
            self.parts.watchdog.stop()

    async def _interrupt(self, work: asyncio.Future[None]) -> None:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await self._end(self.dispatcher)
        await self._flush()
        await self._checkpoint()
        raise Interrupted(
            f"stopped at version {self.version}; continue with "
            f"`agentrl train --resume {self.parts.folder.path}`"
        )

    async def _work(self) -> None:
        if self.parts.before_start is not None:
            await self.parts.before_start(self.version)
        if not self.begun:
            if not self.initialised:
                await self._initial_values()
                self.initialised = True
            await self._evaluate()
            self.begun = True
            await self._checkpoint()
        self._training_began = time.monotonic(), self.stream.sampled_tokens
        dispatching = asyncio.ensure_future(self.dispatcher.run())
        try:
            while self.version < self.settings.run.steps and not self._stop.is_set():
                await self._one_step(await self._take(dispatching))
        finally:
            self._between_steps.set()
            dispatching.cancel()
            await asyncio.gather(dispatching, return_exceptions=True)
        if self.version >= self.settings.run.steps:
            await self._finish()

    async def _finish(self) -> None:
        await self._end(self.dispatcher)
        await self._flush()
        self.stream.abandon("the run reached its last step")
        every = self.settings.eval.every
        if every == 0 or self.version % every:
            await self._evaluate()
        await self._save_weights()
        await self._checkpoint()

    # ------------------------------------------------------------------ phases

    async def _initial_values(self) -> None:
        parts, settings = self.parts, self.settings.tracker
        if settings.initial_file:
            known = read_initial_file(parts.pool, Path(settings.initial_file))
            parts.metrics.write("initial", episodes=0, tokens=0, prompts=known, file=settings.initial_file)
            return
        if not needs_initial_rollouts(self.settings, parts.estimator):
            return
        started, cpu = time.monotonic(), cpu_seconds()
        stream = InitialStream(
            pool=parts.pool,
            ledger=parts.ledger,
            recorder=parts.recorder,
            seed=self.settings.run.seed,
            rollouts=settings.initial_rollouts,
        )
        parts.metrics.tell(
            "phase", name="initial rollouts", total=len(parts.pool) * settings.initial_rollouts
        )
        dispatcher = Dispatcher(
            stream, parts.play, self.settings.stream.in_flight or self.settings.engine.slots
        )
        running = asyncio.ensure_future(dispatcher.run())
        done = asyncio.ensure_future(stream.done.wait())
        try:
            await self.parts.watchdog.wait(
                asyncio.wait((running, done), return_when=asyncio.FIRST_COMPLETED),
                "another rollout for an initial value to end",
                self.settings.run.wait_limit_s,
                progress=lambda: stream.ended,
            )
            if running.done():
                running.result()
        finally:
            running.cancel()
            done.cancel()
            await self._end(dispatcher)
            # An attempt that ends in the middle of it has cost its time.
            self.totals.add_initial_time(time.monotonic() - started, cpu_seconds() - cpu)
        stream.initialise()
        count = sum(map(len, stream.scores))
        self.totals.values["episodes_initial"] = count
        self.totals.values["tokens_initial"] = stream.sampled_tokens
        parts.metrics.write(
            "initial",
            episodes=count,
            tokens=stream.sampled_tokens,
            score_mean=sum(map(sum, stream.scores)) / count,
            seconds=self.totals.initial_s,
            cpu_s=self.totals.initial_cpu_s,
        )

    async def _evaluate(self) -> None:
        if self.parts.evaluate is None:
            return
        self.parts.metrics.tell("phase", name="evaluation", total=0)
        ended = 0

        def one_more() -> None:
            nonlocal ended
            ended += 1

        row = await self.parts.watchdog.wait(
            self.parts.evaluate(self.version, self.evaluations, one_more),
            f"another episode of the evaluation of version {self.version} to end",
            self.settings.run.wait_limit_s,
            progress=lambda: ended,
        )
        self.evaluations += 1
        self.parts.metrics.write("eval", step=self.version, version=self.version, attempt=self.attempt, **row)

    async def _one_step(self, batch: Sequence[Episode]) -> None:
        self._between_steps.clear()
        started = time.monotonic()
        if self.parts.shuffle_rewards:
            batch = shuffled(batch, self.settings.run.seed + self.version)
        given = self.credit.assign(batch)
        learned = await self.parts.watchdog.wait(
            self.parts.learner.step(given.trained, given.advantages, clock_tokens=self.credit.clock_tokens),
            f"the learner's step at version {self.version}",
            self.settings.run.wait_limit_s,
        )
        learn_s = time.monotonic() - started
        self._record_step(batch, given.masked, learned)
        publish_s = await self._publish()
        drifts = None
        if self.replay:
            drifts = await self.limited(self.replay.after_step(batch), "the learner to score again")
        folds = self.credit.fold(batch, drifts)
        self.redo()
        self._log_step(batch, given, learned, folds, learn_s, publish_s)
        self.buffer.advance(self.version)
        self.dispatcher.wake()
        await self._due()
        self._between_steps.set()

    def redo(self) -> None:
        """After a resume: samplers and tracker go through what happened to them at this version before."""
        if self.history is None:
            return
        self.history.redo(self.version)
        self.stream.drawing = self.history.over
        if self.history.over:
            self.history = None

    async def _take(self, dispatching: asyncio.Future[None]) -> Sequence[Episode]:
        waiting = time.monotonic()
        self.dispatcher.wake()
        take = asyncio.ensure_future(
            self.parts.watchdog.wait(
                self.buffer.take(),
                f"a batch of {self.buffer.batch} episodes ({self.dispatcher.in_flight} in flight, "
                f"{self.buffer.size} finished)",
                self.settings.run.wait_limit_s,
                "raise run.wait_limit_s if episodes take this long",
            )
        )
        try:
            looks = 0
            while not take.done():
                await asyncio.wait((take, dispatching), return_when=asyncio.FIRST_COMPLETED, timeout=0.5)
                if dispatching.done():
                    dispatching.result()
                    raise AgentRLError("the dispatcher ended before the run did")
                # Twice, so that a prompt that just came back has been drawn if it can be.
                looks = looks + 1 if not take.done() and self._starved() else 0
                if looks == 2:
                    raise AgentRLError(self._starvation())
            return take.result()
        finally:
            take.cancel()
            self._idle_s += time.monotonic() - waiting

    def _starved(self) -> bool:
        """Whether nothing runs, nothing is being written, and no prompt can be drawn."""
        return not self.dispatcher.in_flight and not self.stream.writing and self.stream.starving

    def _starvation(self) -> str:
        pool = self.parts.pool
        names = ", ".join(pool.quarantined[:3])
        return (
            f"a batch can never fill: {len(pool.quarantined)} of {len(pool)} prompts were set aside after "
            f"{self.settings.sampler.quarantine_after} failures in a row ({names}, ...); "
            f"the last failure: {self.stream.last_failure}"
        )

    def _record_step(self, batch: Sequence[Episode], masked: dict[str, str], learned: dict[str, Any]) -> None:
        keys = [episode.episode_id for episode in batch]
        self.parts.ledger.learned(keys, self.version, masked=masked)
        self.totals.add_episodes(batch, self.version)
        self.credit.advance(float(learned.get("drift") or 0.0))
        self.version += 1

    async def _end(self, dispatcher: Dispatcher) -> None:
        """Stop it; episodes that will not end are named and left behind, for what follows matters more."""
        try:
            await dispatcher.stop()
        except StallError as error:
            self.parts.watchdog.write_stacks(str(error))
            logger.error("%s", error)

    async def _flush(self) -> None:
        await self.limited(self.parts.recorder.flush(), f"the disk to write {self.parts.folder.episodes}")

    async def limited(self, awaitable: Awaitable[T], owner: str) -> T:
        """Await within `run.wait_limit_s`; the error names the owner."""
        return await self.parts.watchdog.wait(awaitable, owner, self.settings.run.wait_limit_s)

    async def load_weights(self) -> None:
        """Give the engine the learner's weights as the present version."""

        async def load() -> None:
            await self.parts.policy.load(await self.parts.learner.handle(self.version, self.attempt))

        await self.parts.watchdog.wait(
            load(), f"the engine to take version {self.version}", self.settings.engine.update_limit_s
        )

    async def _publish(self) -> float:
        started = time.monotonic()
        await self.load_weights()
        if self.parts.after_update is not None:
            await self.parts.after_update(self.version)
        return time.monotonic() - started

    def _observe(self, episode: Episode) -> None:
        """An episode ended, whatever becomes of it: one side of the bias audit."""
        prompt = self.parts.pool.index[episode.prompt_id]
        self.audit.dispatched(episode, self.parts.pool.tracker.value(prompt))

    async def _due(self) -> None:
        """What is due after a step: evaluation, weights, checkpoint."""
        settings, last = self.settings, self.version >= self.settings.run.steps
        if settings.eval.every and self.version % settings.eval.every == 0:
            await self._evaluate()
        if last:
            return  # `_finish` does the rest
        if settings.checkpoint.weights_every and self.version % settings.checkpoint.weights_every == 0:
            await self._save_weights()
        if settings.checkpoint.every and self.version % settings.checkpoint.every == 0:
            await self._checkpoint()

    # ------------------------------------------------------------------ records

    def _log_step(
        self,
        batch: Sequence[Episode],
        given: Assignment,
        learned: dict[str, Any],
        folds: Sequence[Fold],
        learn_s: float,
        publish_s: float,
    ) -> None:
        for episode in given.trained:
            self.audit.learned(episode)
        before = self.version - 1
        ages = [episode.staleness(before) for episode in batch]
        scores = np.array([episode.score for episode in batch])
        statistics = self.parts.policy.statistics()
        elapsed = self.elapsed()
        generated = self.stream.sampled_tokens
        tokens = float(learned.get("tokens_read") or 0.0)
        row = {
            **learned,
            **describe_batch(batch),
            "step": self.version,
            "version": self.version,
            "attempt": self.attempt,
            "time_s": elapsed,
            "cpu_s": self.earlier_cpu_s + cpu_seconds(),
            "baseline_mean": float(given.baselines.mean()),
            "brier": brier_score(given.baselines, scores),
            "log_loss": log_loss(given.baselines, scores),
            "advantage_std": float(given.advantages.std()) if len(given.advantages) else 0.0,
            "staleness": {str(age): ages.count(age) for age in sorted(set(ages))},
            "staleness_mean": sum(ages) / len(ages),
            "excess_share": sum(age > self.settings.stream.staleness for age in ages) / len(ages),
            "staleness_allowed": self.buffer.staleness,
            "clock": self.parts.pool.tracker.clock,
            "rho_mean": float(np.mean([fold.rho for fold in folds])),
            "episodes": self.totals.values["episodes_learned"],
            "failures": self.stream.failures,
            "in_flight": self.dispatcher.in_flight,
            "buffered": self.buffer.size,
            "tokens_generated": generated,
            "generate_tokens_per_s": self._generation_rate(),
            "learn_tokens_per_s": tokens / max(learn_s, 1e-9),
            "learner_idle_s": self._idle_s,
            "learn_s": learn_s,
            "publish_s": publish_s,
            **{f"engine_{name}": value for name, value in statistics.items()},
            **self.audit.report(self._frontier()),
        }
        self.parts.metrics.write("step", **row)
        self._steer(learned)

    def _frontier(self) -> int:
        """Lowest dispatch index still under way."""
        waiting = [episode.dispatch_index for episode in self.buffer.episodes()]
        return min([*waiting, *self.dispatcher.indices()], default=self.stream.next_index)

    def _steer(self, learned: dict[str, Any]) -> None:
        """Lower the staleness in force while importance weights leave too few effective tokens."""
        least, share = self.settings.stream.min_effective_share, learned.get("effective_share")
        if not least or share is None or self.settings.run.deterministic:
            return
        if share < least:
            self.buffer.staleness = max(0, self.buffer.staleness - 1)
        else:
            self.buffer.staleness = min(self.settings.stream.staleness, self.buffer.staleness + 1)

    def _generation_rate(self) -> float:
        """Sampled tokens a second of this attempt's training, without initial rollouts and evaluations."""
        started, tokens = self._training_began
        return (self.stream.sampled_tokens - tokens) / max(time.monotonic() - started, 1e-9)

    def elapsed(self) -> float:
        """Wall seconds over all attempts."""
        return self.earlier_s + time.monotonic() - self._started

    async def _save_weights(self) -> None:
        final = self.parts.folder.weights / f"step_{self.version}"
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        await self.limited(self.parts.learner.save_weights(temporary), "the learner to write its weights")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)

    def state(self) -> RunState:
        """Everything besides the learner, at this moment."""
        parts = self.parts
        return RunState(
            version=self.version,
            attempt=self.attempt,
            run_id=parts.folder.identity["run_id"],
            ledger_position=parts.ledger.position,
            clocks=list(self.credit.clocks),
            pool=parts.pool.state_dict(),
            totals=self.totals.state_dict(),
            episodes=self.buffer.episodes(),
            previous=self.replay.episodes() if self.replay else (),
            extra={
                "begun": self.begun,
                "initialised": self.initialised,
                "evaluations": self.evaluations,
                "staleness": self.buffer.staleness,
                "elapsed_s": self.elapsed(),
                "cpu_s": self.earlier_cpu_s + cpu_seconds(),
                "tokens_generated": self.stream.sampled_tokens,
            },
        )

    async def _checkpoint(self) -> None:
        """Write a checkpoint; episodes go on meanwhile, the learner does not."""
        parts = self.parts
        state = self.state()
        parts.ledger.sync()
        final = parts.folder.checkpoints / f"step_{self.version:06d}"
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            await self.limited(parts.learner.save(temporary / "learner"), "the learner to save")
            await self.limited(
                asyncio.to_thread(write_state, temporary, state), f"the disk to write {temporary}"
            )
            await self.limited(
                asyncio.to_thread(commit, temporary, final, self.settings.checkpoint.keep),
                f"the disk to take {final}",
            )
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise AgentRLError(
                f"cannot write the checkpoint of version {self.version} to {final}: {error}; "
                "the checkpoint before it is intact: free some space and resume"
            ) from error
        await self.limited(
            asyncio.to_thread(parts.recorder.rotate), f"the disk to compress {parts.folder.episodes}"
        )
