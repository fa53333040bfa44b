"""One attempt of a run: its parts, what is made of them, and how far it is.

Checkpoints, the log of steps, initial values and the way back to a checkpoint read and set this state; what
happens when is the orchestrator's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agentrl.config.settings import Settings
from agentrl.errors import StallError
from agentrl.rollout.outage import Outages
from agentrl.storage.steps import StepFiles
from agentrl.training.buffer import EpisodeBuffer
from agentrl.training.control import Control
from agentrl.training.copies import FreshCopies
from agentrl.training.credit import Credit
from agentrl.training.dispatcher import Dispatcher
from agentrl.training.drift_replay import DriftReplay
from agentrl.training.groups import Groups
from agentrl.training.parts import Parts
from agentrl.training.progress import Progress
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
        self.progress = Progress()
        self.credit = Credit(settings, parts.pool, parts.estimator)
        self.control = Control(settings)
        self.outages = Outages(
            [task.name for task in parts.pool.tasks],
            limit_s=settings.run.outage_limit_s,
            tell=self._tell_outage,
            give_up=self.fail,
            exhausted=parts.pool.exhausted_in,
            remedy=f"go on with `agentrl train --resume {parts.folder.path}` (no prompt is lost; "
            "run.outage_limit_s says how long to keep trying)",
        )
        size = settings.estimator.group_size
        groups = Groups(size, given_up_after=settings.sampler.quarantine_after) if size > 1 else None
        fresh = settings.sampler.fresh_copies
        copies = FreshCopies(fresh, parts.pool, self.credit.freeze) if fresh > 1 else None
        self.buffer = EpisodeBuffer(
            batch=stream.batch,
            staleness=0 if settings.run.deterministic else stream.staleness,
            stale_policy=stream.stale_policy,
            groups=groups or copies,
            keep=self.credit.keeps,
        )
        self.stream = TrainingStream(
            pool=parts.pool,
            buffer=self.buffer,
            ledger=parts.ledger,
            recorder=parts.recorder,
            seed=settings.run.seed,
            total=settings.run.steps * stream.batch,
            credit=self.credit,
            progress=self.progress,
            groups=groups,
            copies=copies,
            in_order=settings.run.deterministic,
            outages=self.outages,
        )
        self.dispatcher = Dispatcher(
            self.stream, parts.play_to_learn, stream.in_flight or settings.engine.slots
        )
        self.stream.wake = self.dispatcher.wake
        self.replay = DriftReplay(parts.learner) if settings.tracker.drift == "replay" else None
        self.files = StepFiles(parts.folder.path, keep=settings.run.token_values_kept)
        self.light: dict[str, Any] = {}
        """Of the newest step, as it is on disk (`agentrl.training.snapshot`)."""
        self.writing: asyncio.Task[None] | None = None
        """The checkpoint that is on its way to the disk while the learner goes on."""
        self._failed: asyncio.Future[None] | None = None
        self.forgive = not settings.run.deterministic
        """Whether prompts that an earlier attempt set aside are drawn again."""
        parts.recorder.on_error(self.fail)
        if hasattr(parts.policy, "on_error"):
            parts.policy.on_error(self.fail)

    def fail(self, error: BaseException) -> None:
        """End the attempt with what went wrong beside its steps."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _tell_outage(self, row: Mapping[str, Any]) -> None:
        metrics = self.parts.metrics
        (metrics.tell if row["state"] == "waiting" else metrics.write)(
            "outage", step=self.progress.version, **row
        )

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

    @property
    def version(self) -> int:
        """Of the policy."""
        return self.progress.version

    def learner_options(self, baselines: NDArray[np.float64], values: Mapping[str, float]) -> dict[str, Any]:
        """What the learner is told besides episodes and advantages.

        Args:
            baselines: [B] of the episodes that are learned from.
            values: of controlled settings, in force during the step.
        """
        return self.credit.learner_options(baselines) | self.control.learner_options(values)

    async def load_weights(self) -> None:
        """Give the engine the learner's weights as the present version."""
        progress = self.progress

        async def load() -> None:
            await self.parts.policy.load(await self.parts.learner.handle(progress.version, progress.attempt))

        limit_s = self.settings.engine.update_limit_s
        if self.settings.cluster.kind != "none":
            # A worker has that limit itself and is lost past it; where all are, one is started again.
            limit_s = 2 * limit_s + self.settings.cluster.start_limit_s
        await self.parts.watchdog.wait(load(), f"the engine to take version {self.version}", limit_s)
