"""The parts of a run: what `assemble` makes from settings."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.algorithms.advantage import Estimator
from agentrl.episode import Episode
from agentrl.inference.policy import Policy
from agentrl.rollout.outage import Outages
from agentrl.rollout.token_completer import Dispatch
from agentrl.storage.ledger import Ledger
from agentrl.storage.metrics import Listener, MetricsWriter
from agentrl.storage.recorder import EpisodeRecorder
from agentrl.storage.run_folder import RunFolder
from agentrl.training.learner_thread import AsyncLearner
from agentrl.training.prompts import PromptPool
from agentrl.training.watchdog import Watchdog

Play = Callable[[Dispatch], Awaitable[Episode]]


Evaluate = Callable[[int, int, Callable[[], None], Outages], Awaitable[dict[str, Any]]]
"""From (version, index of the evaluation, what to call after each episode, what is paused) to a row."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of (`agentrl.training.assembly.assemble`)."""

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
    teacher: Callable[[Episode], Awaitable[Episode]] | None = None
    """Adds what a served teacher says of an episode's tokens."""

    async def play_to_learn(self, dispatch: Dispatch) -> Episode:
        """Play an episode that the learner will see."""
        episode = await self.play(dispatch)
        return episode if self.teacher is None else await self.teacher(episode)

    async def close(self) -> None:
        """Close the files: metrics, recorder and ledger."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.ledger.close)
            stack.push_async_callback(self.recorder.close)
            stack.callback(self.metrics.close)


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is told besides its settings."""

    listeners: Sequence[Listener] = ()
    """Told every row of metrics: terminal, tracking services."""
    shuffle_rewards: bool = False
    """A control: rewards are dealt out anew among the episodes of each batch."""
    forgive: bool = False
    """Resumed: prompts that were set aside are drawn again, also in a deterministic run."""
    on_ready: Callable[[str], None] | None = None
    """Told a line at a time: what was chosen, what the run will cost, what its programs run in."""
    said: Collection[str] | None = None
    """A new run: dotted names of settings that were said, the others are chosen for the machine; None chooses
    none."""
