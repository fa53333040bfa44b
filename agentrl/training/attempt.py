"""One attempt of a run: its parts, what is made of them, and how far it is.

Checkpoints, the log of steps, initial values and the way back to a checkpoint read and set this state; what
happens when is the orchestrator's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from agentrl.config.settings import Settings
from agentrl.errors import StallError
from agentrl.rollout.outage import Outages
from agentrl.storage.metrics import Totals
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.credit import Credit
from agentrl.training.dispatcher import Dispatcher
from agentrl.training.drift_replay import DriftReplay
from agentrl.training.history import History
from agentrl.training.parts import Parts
from agentrl.training.streams import TrainingStream

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Attempt:
    """The state of one attempt of a run.

    Args:
        settings: of the run.
        parts: what it is made of.
    """

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings, self.parts = settings, parts
        stream = settings.stream
        self.version = 0
        self.attempt = 1
        self.credit = Credit(settings, parts.pool, parts.estimator)
        self.totals = Totals()
        self.outages = Outages(
            [task.name for task in parts.pool.tasks],
            limit_s=settings.run.outage_limit_s,
            tell=self._tell_outage,
            give_up=self._fail,
            exhausted=parts.pool.exhausted_in,
            remedy=f"go on with `agentrl train --resume {parts.folder.path}` (no prompt is lost; "
            "run.outage_limit_s says how long to keep trying)",
        )
        self.buffer = EpisodeBuffer(
            batch=stream.batch,
            staleness=0 if settings.run.deterministic else stream.staleness,
            stale_policy=stream.stale_policy,
            unit=settings.estimator.group_size,
            keep=self.credit.keeps,
        )
        self.stream = TrainingStream(
            pool=parts.pool,
            buffer=self.buffer,
            ledger=parts.ledger,
            recorder=parts.recorder,
            seed=settings.run.seed,
            group_size=settings.estimator.group_size,
            total=settings.run.steps * stream.batch,
            fold=self.credit.fold_one,
            quarantine_after=settings.sampler.quarantine_after,
            in_order=settings.run.deterministic,
            outages=self.outages,
        )
        self.dispatcher = Dispatcher(self.stream, parts.play, stream.in_flight or settings.engine.slots)
        self.stream.wake = self.dispatcher.wake
        self.replay = DriftReplay(parts.learner) if settings.tracker.drift == "replay" else None
        self._failed: asyncio.Future[None] | None = None
        self._started = time.monotonic()
        self.initialised = False
        self.history: History | None = None  # what a resumed run still has to redo
        self.begun = False  # initial values and the first evaluation are done
        self.evaluation_due = False  # of this version; a run that is stopped meanwhile makes it up later
        self.forgive = not settings.run.deterministic
        """Whether prompts that an earlier attempt set aside are drawn again."""
        self.earlier_s = self.earlier_cpu_s = 0.0  # of earlier attempts
        self.evaluations = 0
        parts.recorder.on_error(self._fail)

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _tell_outage(self, row: Mapping[str, Any]) -> None:
        metrics = self.parts.metrics
        (metrics.tell if row["state"] == "waiting" else metrics.write)("outage", step=self.version, **row)

    async def end(self, dispatcher: Dispatcher) -> None:
        """Stop it; episodes that will not end are named and left behind, for what follows matters more."""
        try:
            await dispatcher.stop()
        except StallError as error:
            self.parts.watchdog.write_stacks(str(error))
            logger.error("%s", error)

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

    def elapsed(self) -> float:
        """Wall seconds over all attempts."""
        return self.earlier_s + time.monotonic() - self._started
