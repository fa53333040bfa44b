"""The prompts of a run: rows of all its environments, and which is drawn next.

Prompts are numbered 0..P-1 over all environments together; the number is what the value tracker
and the samplers know, `prompt_id` is what the ledger and the files know. Environments are mixed by
weight: the one that is furthest behind its share is asked first. It knows nothing of episodes.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.algorithms.prompt_sampler import PromptSampler
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config import registry
from agentrl.config.settings import DataSettings, EnvSettings, SamplerSettings
from agentrl.errors import CheckpointError, ConfigError
from agentrl.weights.model_files import hub_trouble, stay_offline
from agentrl_envs import Env, EnvError, load_env, load_rows, usable_rows
from agentrl_envs.dataset import prompt_id as row_prompt_id
from agentrl_envs.graders import default_grader
from agentrl_envs.raised import error_text, place
from agentrl_sandbox import Sandbox

logger = logging.getLogger(__name__)

_GENERATED = re.compile(r"generated:(train|test):(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Task:
    """One environment of the run with its rows."""

    name: str
    env: type[Env]
    settings: Mapping[str, Any]
    weight: float
    rows: tuple[Mapping[str, Any], ...]

    def make(self, sandbox: Sandbox | None, seed: int | None) -> Env:
        """The environment's object for one episode."""
        rng = None if seed is None else random.Random(seed)
        try:
            return self.env(sandbox=sandbox, rng=rng, **self.settings)
        except BaseException as error:
            if isinstance(error, EnvError | KeyboardInterrupt):
                raise
            what = f"{self.env.__name__}.__init__ raised {error_text(error)} ({place(error)})"
            raise EnvError(what) from error


def load_data(data: DataSettings, env: type[Env], where: str) -> tuple[Mapping[str, Any], ...]:
    """Rows of one environment, checked for the fields it needs.

    `generated:train:300` (and `generated:test:300:SEED`) asks the environment itself for rows.

    Raises:
        ConfigError: no data, or data the environment cannot use.
    """
    generated = _GENERATED.fullmatch(data.train)
    try:
        if generated is not None:
            make = getattr(env, "generate_rows", None)
            if make is None:
                raise ConfigError(f"{where}: {env.__name__} does not generate rows; name a data file")
            split, count, seed = generated.groups()
            rows = make(int(count), split=split, seed=int(seed or 0))
        else:
            rows = load_rows(known_data(data.train), map=data.map, limit=data.limit or None)
        env.check_rows(rows, where=f"{where}: {data.train}: row")
    except EnvError as error:
        raise ConfigError(f"{where}: {error}") from error
    kept, aside = usable_rows(env, rows[: data.limit] if data.limit else rows, default_grader())
    if not kept:
        raise ConfigError(f"{where}: no gold answer can be compared; {aside[0].answer!r}: {aside[0].why}")
    if aside:
        named = "; ".join(f"{one.problem} ({one.answer!r:.60}: {one.why})" for one in aside[:5])
        logger.warning("%s: %d rows set aside for their gold answers: %s", where, len(aside), named)
    return tuple(kept)


def known_data(name: str) -> str:
    """The file behind the name of a data set that `agentrl eval` knows; other names are left alone.

    Raises:
        ConfigError: the hub's id of a data set that has a name here, under which its columns are known.
    """
    if Path(name).exists():
        return name
    from agentrl.tasks.catalog import BENCHMARKS
    from agentrl.tasks.datasets import locate

    known = [known for known, one in BENCHMARKS.items() if one.hub is not None and one.hub.repository == name]
    if known:
        raise ConfigError(
            f"{name} has a name here, which also says what its columns are: give {' or '.join(known)}"
        )
    if not re.fullmatch(r"[a-z0-9_]+", name):
        on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w-]+", name)
        if on_hub and hub_trouble(f"datasets/{name}") is not None:
            stay_offline()  # what was downloaded before may still be read
        return name

    return str(locate(name))


def load_tasks(envs: Sequence[EnvSettings], data: DataSettings) -> tuple[Task, ...]:
    """The environments of a run.

    Raises:
        ConfigError: an environment, its settings or its data cannot be used.
    """
    if not envs:
        raise ConfigError("no environment: give [env] with a name, or a file on the command line")
    tasks: list[Task] = []
    for number, settings in enumerate(envs):
        where = f"env {settings.name!r}" if len(envs) == 1 else f"env {number + 1} ({settings.name!r})"
        source = settings.data if settings.data.train else data
        if not source.train:
            raise ConfigError(f"{where} has no data: set data.train to a jsonl or parquet file")
        try:
            env = load_env(settings.name)
            checked = env.check_settings(settings.settings)
        except EnvError as error:
            raise ConfigError(f"{where}: {error}") from error
        if settings.weight <= 0.0:
            raise ConfigError(f"{where}: weight must be positive, got {settings.weight}")
        tasks.append(Task(settings.name, env, checked, settings.weight, load_data(source, env, where)))
    return tuple(tasks)


class PromptPool:
    """All prompts of a run, and the samplers that draw them.

    Args:
        tasks: the environments with their rows.
        make_tracker: from the number of prompts to the value tracker.
        settings: of the samplers.
        seed: of the draws.

    Raises:
        ConfigError: two environments give one prompt the same id.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        make_tracker: Callable[[int], ValueTracker],
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
        self.tracker = make_tracker(len(self.prompt_ids))
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
