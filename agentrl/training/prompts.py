"""The prompts of a run: rows of all its environments, and which is drawn next.

Prompts are numbered 0..P-1 over all environments together; the number is what the value tracker
and the samplers know, `prompt_id` is what the ledger and the files know. Environments are mixed by
weight: the one that is furthest behind its share is asked first. It knows nothing of episodes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config import registry
from agentrl.config.settings import SamplerSettings
from agentrl.errors import CheckpointError, ConfigError
from agentrl.tasks.task import Task
from agentrl_envs.dataset import prompt_id as row_prompt_id

logger = logging.getLogger(__name__)


class PromptPool:
    """All prompts of a run, and the samplers that draw them.

    Args:
        tasks: the environments with their rows.
        make_tracker: from the environment of each prompt, [P] numbers from 0, to the value tracker.
        settings: of the samplers.
        seed: of the draws.

    Raises:
        ConfigError: two environments give one prompt the same id.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        make_tracker: Callable[[NDArray[np.int64]], ValueTracker],
        settings: SamplerSettings,
        *,
        seed: int,
    ) -> None:
        self.tasks = tuple(tasks)
        self.prompt_ids: list[str] = []
        self._rows: list[Mapping[str, Any]] = []
        self._task_of: list[int] = []
        for number, task in enumerate(self.tasks):
            prefix = "" if len(self.tasks) == 1 else f"{task.name}/"
            for row in task.rows:
                self.prompt_ids.append(prefix + row_prompt_id(row))
                self._rows.append(row)
                self._task_of.append(number)
        self._digest = hashlib.sha256("\n".join(self.prompt_ids).encode("utf-8", "surrogatepass")).hexdigest()
        self.index = {prompt_id: number for number, prompt_id in enumerate(self.prompt_ids)}
        if len(self.index) != len(self.prompt_ids):
            raise ConfigError("two rows have one prompt id; give every environment of a mixture its own name")
        self.tracker = make_tracker(np.array(self._task_of, dtype=np.int64))
        self.samplers: list[PromptSampler] = []
        weights = registry.make("sampler", settings.kind, settings.own)
        start = 0
        for number, task in enumerate(self.tasks):
            prompts = range(start, start + len(task.rows))
            self.samplers.append(
                PromptSampler(self.tracker, settings, weights, seed=seed * 1_000 + number, prompts=prompts)
            )
            start = prompts.stop
        self._drawn = [0] * len(self.tasks)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def row(self, prompt: int) -> Mapping[str, Any]:
        """The data row of a prompt."""
        return self._rows[prompt]

    def task(self, prompt: int) -> Task:
        """The environment of a prompt."""
        return self.tasks[self._task_of[prompt]]

    def draw(self, admits: Callable[[str], bool] = lambda environment: True) -> int | None:
        """The next prompt of an admitted environment, marked pending; None when none can be drawn now."""
        order = sorted(
            range(len(self.tasks)),
            key=lambda number: (self._drawn[number] / self.tasks[number].weight, number),
        )
        for number in order:
            if not admits(self.tasks[number].name):
                continue
            prompt = self.samplers[number].draw()
            if prompt is not None:
                self._drawn[number] += 1
                return prompt
        return None

    def copy(self, prompt: int) -> None:
        """Mark another episode of a pending prompt pending: it is played several times at once."""
        self.samplers[self._task_of[prompt]].copy(prompt)

    def weight(self, prompt: int) -> float:
        """What a prompt weighed, within its environment, when it was drawn."""
        return self.samplers[self._task_of[prompt]].weight(prompt)

    def is_fresh(self, prompt: int) -> bool:
        """Whether a pending prompt was never seen, and one episode of it is in flight."""
        return not self.tracker.seen([prompt])[0] and self.samplers[self._task_of[prompt]].copies(prompt) == 1

    def claim(self, prompt: int) -> None:
        """Mark a prompt pending as `draw` did in an earlier attempt; later draws come out the same."""
        number = self._task_of[prompt]
        self.samplers[number].claim(prompt)
        self._drawn[number] += 1

    def folded(self, prompt: int) -> None:
        """An episode of the prompt was folded."""
        self.samplers[self._task_of[prompt]].folded(prompt)

    def returned(self, prompt: int) -> None:
        """An episode of the prompt ended without being folded, through no fault of its own."""
        self.samplers[self._task_of[prompt]].returned(prompt)

    def failed(self, prompt: int) -> None:
        """An episode of the prompt failed."""
        self.samplers[self._task_of[prompt]].failed(prompt)

    def do(self, done: Literal["claim", "copy", "folded", "returned", "failed"], prompt_id: str) -> None:
        """One of these by name, as the ledger has it."""
        getattr(self, done)(self.index[prompt_id])

    def put_aside(self, prompt: int) -> None:
        """Set a prompt aside that cannot be played, without an episode of it."""
        self.samplers[self._task_of[prompt]].put_aside(prompt)

    def forgive(self) -> int:
        """Forget all failures; returns how many prompts had been set aside and are drawn again."""
        return sum(sampler.forgive() for sampler in self.samplers)

    def refresh_all(self) -> None:
        """All values changed."""
        for sampler in self.samplers:
            sampler.refresh_all()

    @property
    def exhausted(self) -> bool:
        """Whether every prompt is set aside."""
        return all(sampler.exhausted for sampler in self.samplers)

    def exhausted_in(self, environment: str) -> bool:
        """Whether every prompt of an environment is set aside."""
        pairs = zip(self.tasks, self.samplers, strict=True)
        return all(sampler.exhausted for task, sampler in pairs if task.name == environment)

    @property
    def set_aside(self) -> dict[str, list[str]]:
        """Ids of the prompts set aside, by environment; environments without any are left out."""
        found: dict[str, list[str]] = {}
        for task, sampler in zip(self.tasks, self.samplers, strict=True):
            if sampler.quarantined:
                found.setdefault(task.name, []).extend(self.prompt_ids[p] for p in sampler.quarantined)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tracker, samplers and shares."""
        return {
            "prompts": self._digest,
            "tracker": self.tracker.state_dict(),
            "samplers": [sampler.state_dict() for sampler in self.samplers],
            "drawn": list(self._drawn),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state.

        Raises:
            CheckpointError: it is of another set of prompts.
        """
        self.tracker.load_state_dict(state["tracker"])
        if state.get("prompts", self._digest) != self._digest:
            raise CheckpointError(
                f"the {len(self)} prompts are not those of the run, or stand in another order, and values "
                "are kept by place; resume with the data the run began with"
            )
        for sampler, saved in zip(self.samplers, state["samplers"], strict=True):
            sampler.load_state_dict(saved)
        self._drawn = list(state["drawn"])
