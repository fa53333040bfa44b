"""The clock of a run: policy version, order of shutdown, moment of the checkpoint.

One batch after the other: take it from the buffer, read all its baselines, let the learner step, fold the
batch in order of dispatch, write the step down, publish the new version while episodes go on. The
orchestrator wires streams, dispatcher, buffer, learner and engine; it does no mathematics, imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from agentrl.algorithms.value_tracker import Fold
from agentrl.config.settings import Settings
from agentrl.episode import Episode
from agentrl.errors import AgentRLError, Interrupted
from agentrl.training.attempt import Attempt
from agentrl.training.credit import shuffled
from agentrl.training.initial_values import set_initial_values
from agentrl.training.parts import Parts
from agentrl.training.snapshot import keep_best, write_checkpoint, write_step, write_weights
from agentrl.training.step_log import StepLog

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Orchestrator(Attempt):
    """Runs one attempt of a run, from a version to the last step."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        super().__init__(settings, parts)
        self.log = StepLog(self)
        self.stream.observe = self.log.observe
        self._stop = asyncio.Event()
        self._between_steps = asyncio.Event()
        self._between_steps.set()

    # ------------------------------------------------------------------ control

    def stop(self) -> None:
        """Ask for a clean end: what is finished is saved, the rest is pending for a resumed run."""
        self._stop.set()

    def check_stop(self, note: str) -> None:
        """End here if `stop` was called.

        Raises:
            Interrupted: it was.
        """
        if self._stop.is_set():
            raise Interrupted(
                f"stopped; continue with `agentrl train --resume {self.parts.folder.path}`: {note}"
            )

    async def run(self) -> None:
        """Run to the last step.

        Raises:
            Interrupted: `stop` was called; a checkpoint was written.
            AgentRLError: something could not go on; says what and how to continue.
        """
        self._failed = asyncio.get_running_loop().create_future()
        self.progress.begin()
        self.parts.watchdog.start()
        if self.parts.ledger.attempt == 0:
            self.progress.attempt = self.parts.ledger.begin_attempt(self.version)
        work = asyncio.ensure_future(self._work())
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((work, stop, self._failed), return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not self._failed.done():
                # A step under way is finished and recorded: only waiting and evaluating may be cut short.
                while not self._between_steps.is_set():
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
            self.outages.close()
            # A checkpoint that is on its way here is of a run that failed: the one before it is intact.
            tasks = [work, stop, *([self.writing] if self.writing is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.end(self.dispatcher)
            self._failed.cancel()
            self.parts.watchdog.stop()

    async def _interrupt(self, work: asyncio.Future[None]) -> None:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await self.end(self.dispatcher)
        await self._flush()
        await write_checkpoint(self)
        if self.version:
            await write_weights(self)
        raise Interrupted(
            f"stopped at version {self.version}; continue with "
            f"`agentrl train --resume {self.parts.folder.path}`"
        )

    async def _work(self) -> None:
        if self.parts.before_start is not None:
            await self.parts.before_start(self.version)
        if not self.progress.begun:
            if not self.progress.initialised:
                await set_initial_values(self)
                self.progress.initialised = True
            await self._evaluate()
            self.progress.begun = True
            await write_checkpoint(self)
        await self._due()
        self.log.begin()
        self.outages.wake = self.dispatcher.wake
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
        await self.end(self.dispatcher)
        await self._flush()
        self.stream.abandon("the run reached its last step")
        every = self.settings.eval.every
        if every == 0 or self.version % every:
            await self._evaluate()
        await write_weights(self)
        await self._keep_best()
        await write_checkpoint(self)

    # ------------------------------------------------------------------ phases

    async def _evaluate(self) -> None:
        if self.parts.evaluate is None:
            return
        self.parts.metrics.tell("phase", name="evaluation", total=0)
        ended = 0

        def one_more() -> None:
            nonlocal ended
            ended += 1
            self.parts.metrics.tell("progress", name="evaluation", done=ended, total=0)

        row = await self.parts.watchdog.wait(
            self.parts.evaluate(self.version, self.progress.evaluations, one_more, self.outages),
            f"another episode of the evaluation of version {self.version} to end",
            self.settings.run.wait_limit_s,
            progress=lambda: ended,
        )
        self.progress.evaluations += 1
        self.parts.metrics.write(
            "eval", step=self.version, version=self.version, attempt=self.progress.attempt, **row
        )

    async def _one_step(self, batch: Sequence[Episode]) -> None:
        self._between_steps.clear()
        started = time.monotonic()
        if self.parts.shuffle_rewards:
            batch = shuffled(batch, self.settings.run.seed + self.version)
        given = self.credit.assign(batch)
        values = dict(self.control.values)
        options = self.learner_options(given.baselines[given.learned], values)
        learned = await self.parts.watchdog.wait(
            self.parts.learner.step(given.trained, given.advantages, **options),
            f"the learner's step at version {self.version}",
            self.settings.run.wait_limit_s,
        )
        tokens = learned.pop("token_values", None)
        learn_s = time.monotonic() - started
        drifts = None
        if self.replay:
            drifts = await self.limited(self.replay.after_step(batch), "the learner to score again")
        folds = self._count(batch, learned, drifts)
        row = self.log.step(batch, given, learned, folds, learn_s=learn_s)
        self.control.act(row, self.credit.batch(batch, given.baselines))
        self.buffer.staleness = self.control.staleness(self.buffer.staleness)
        await write_step(self, batch, given, values, tokens, row)
        keys = [episode.episode_id for episode in batch]
        self.parts.ledger.learned(keys, self.version - 1, masked=given.masked)  # from now on it is taken
        published = self._to_publish()
        self.log.publish_s = await self._publish() if published else 0.0
        self.buffer.advance(self.version, published=published)
        self.dispatcher.wake()
        await self._due()

    def _count(
        self, batch: Sequence[Episode], learned: dict[str, Any], drifts: Sequence[float | None] | None
    ) -> list[Fold]:
        """A batch was learned from: the next version begins, and its scores are folded."""
        progress = self.progress
        progress.totals.add_episodes(batch, progress.version)
        self.credit.advance(float(learned.get("drift") or 0.0))
        progress.version += 1
        progress.due = True
        return self.credit.fold(batch, drifts)

    async def _take(self, dispatching: asyncio.Future[None]) -> Sequence[Episode]:
        waiting = time.monotonic()
        self.stream.expire()
        self.dispatcher.wake()
        take = asyncio.ensure_future(
            self.parts.watchdog.wait(
                self.buffer.take(),
                f"another episode for a batch of {self.buffer.batch} to end",
                self.settings.run.wait_limit_s,
                lambda: (
                    f"{self.dispatcher.in_flight} are in flight, {self.buffer.size} wait for the batch; "
                    "raise run.wait_limit_s if one episode takes this long"
                ),
                progress=lambda: (self.buffer.size, self.stream.failures),
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
                self.parts.metrics.tell(
                    "progress",
                    name=f"episodes for step {self.version + 1} of {self.settings.run.steps}",
                    done=self.buffer.size,
                    total=self.buffer.batch,
                )
                looks = looks + 1 if not take.done() and self._starved() else 0
                if looks == 2:
                    raise AgentRLError(self._starvation())
            return take.result()
        finally:
            take.cancel()
            self.log.idle_s += time.monotonic() - waiting

    def _starved(self) -> bool:
        """Whether nothing runs, nothing is being written, and no prompt can be drawn."""
        return not self.dispatcher.in_flight and not self.stream.writing and self.stream.starving

    def _starvation(self) -> str:
        pool = self.parts.pool
        set_aside = [prompt_id for ids in pool.set_aside.values() for prompt_id in ids]
        last = self.stream.last_failure or "none, but see the row left_out of metrics.jsonl"
        return (
            f"a batch can never fill: {len(set_aside)} of {len(pool)} prompts were set aside after "
            f"{self.settings.sampler.quarantine_after} failures in a row ({', '.join(set_aside[:3])}, ...); "
            f"the last failure: {last}; mend that and go on with "
            f"`agentrl train --resume {self.parts.folder.path} --forgive`, which draws them again"
        )

    async def _keep_best(self) -> None:
        if self.settings.checkpoint.best and self.settings.eval.every and self.parts.evaluate is not None:
            await keep_best(self)

    async def _flush(self) -> None:
        await self.limited(self.parts.recorder.flush(), f"the disk to write {self.parts.folder.episodes}")

    def _to_publish(self) -> bool:
        """Whether engines get the present version: it is its turn, or it is evaluated next."""
        evaluated = self.settings.eval.every if self.parts.evaluate is not None else 0
        every = (self.settings.learner.publish_every, evaluated)
        return self.version >= self.settings.run.steps or any(n and self.version % n == 0 for n in every)

    async def _publish(self) -> float:
        started = time.monotonic()
        await self.load_weights()
        if self.parts.after_update is not None:
            await self.parts.after_update(self.version)
        return time.monotonic() - started

    async def _due(self) -> None:
        """Do what is due after the newest step: evaluation, weights, checkpoint."""
        settings, version, progress = self.settings, self.version, self.progress
        self.log.checkpoint_s = 0.0
        try:
            if progress.due and settings.eval.every and version % settings.eval.every == 0:
                # It may be cut short at any time: it is no part of the step that it follows.
                self._between_steps.set()
                await self._evaluate()
                self._between_steps.clear()
                await self._keep_best()
            self._between_steps.clear()
            due, progress.due = progress.due, False
            if not due or version >= settings.run.steps:
                return  # `_finish` does the rest
            if settings.checkpoint.weights_every and version % settings.checkpoint.weights_every == 0:
                await write_weights(self)
            if settings.checkpoint.every and version % settings.checkpoint.every == 0:
                started = time.monotonic()
                await write_checkpoint(self, wait=not settings.checkpoint.asynchronous)
                self.log.checkpoint_s = time.monotonic() - started
        finally:
            self._between_steps.set()
