"""Tasks of a run or an evaluation: environments with their rows, and the sandbox they use."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentrl.config.secrets import told_without_secrets, with_secrets
from agentrl.config.settings import DataSettings, EnvSettings, IsolationSettings, SandboxSettings
from agentrl.errors import ConfigError
from agentrl.weights.model_files import hub_trouble, stay_offline
from agentrl_envs import Env, EnvError, load_env, load_rows, usable_rows
from agentrl_envs.graders import default_grader
from agentrl_envs.raised import error_text, place
from agentrl_envs.registry import reads_variables
from agentrl_envs.secret_text import masked
from agentrl_sandbox import Limits, Sandbox, open_sandbox

logger = logging.getLogger(__name__)


EXAMPLES = "env:example_rows"
"""Data that are the example rows of the environment itself."""
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
            return self.env(sandbox=sandbox, rng=rng, **with_secrets(self.settings, self.env.reads_variables))
        except BaseException as error:
            if isinstance(error, EnvError | ConfigError | KeyboardInterrupt):
                raise
            what = f"{self.env.__name__}.__init__ raised {error_text(error)} ({place(error)})"
            raise EnvError(what) from error


def load_data(data: DataSettings, env: type[Env], where: str) -> tuple[Mapping[str, Any], ...]:
    """Rows of one environment, checked for the fields it needs.

    `generated:train:300` (and `generated:test:300:SEED`) asks the environment itself for rows;
    `env:example_rows` takes those that its class names.

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
        elif data.train == EXAMPLES:
            rows = load_rows(env.example_rows, limit=data.limit or None)
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


def load_environments(envs: Sequence[EnvSettings]) -> tuple[Task, ...]:
    """The environments of a run without their rows.

    Raises:
        ConfigError: an environment or its settings cannot be used.
    """
    if not envs:
        raise ConfigError("no environment: give [env] with a name, or a file on the command line")
    tasks: list[Task] = []
    for number, settings in enumerate(envs):
        try:
            env = env_class(settings.name, settings.settings, settings)
            checked = env.check_settings(settings.settings)
        except (EnvError, ConfigError) as error:
            raise ConfigError(f"{_where(envs, number)}: {error}") from error
        tasks.append(Task(settings.name, env, checked, settings.weight, ()))
    return tuple(tasks)


def _where(envs: Sequence[EnvSettings], number: int) -> str:
    shown = masked(envs[number].name)
    return f"env {shown!r}" if len(envs) == 1 else f"env {number + 1} ({shown!r})"


def load_tasks(envs: Sequence[EnvSettings], data: DataSettings) -> tuple[Task, ...]:
    """The environments of a run, with their rows.

    Raises:
        ConfigError: an environment, its settings or its data cannot be used.
    """
    tasks: list[Task] = []
    for number, (settings, task) in enumerate(zip(envs, load_environments(envs), strict=True)):
        where = _where(envs, number)
        source = settings.data if settings.data.train else data
        if not source.train:
            raise ConfigError(
                f"{where} has no data: name rows (--data rows.jsonl, or data.train in a file), or give the "
                "class a method `generate_rows` (--data generated:train:250) or `example_rows`"
            )
        if settings.weight <= 0.0:
            raise ConfigError(f"{where}: weight must be positive, got {settings.weight}")
        tasks.append(replace(task, rows=load_data(source, task.env, where)))
    return tuple(tasks)


def env_class(name: str, settings: Mapping[str, Any], how: IsolationSettings) -> type[Env]:
    """The environment class of a name, in processes of its own where the settings want that.

    Args:
        name: as `load_env` takes it.
        settings: as they were written; `"$NAME"` is read where it is loaded, and nowhere kept.
        how: whether it has processes of its own.

    Raises:
        EnvError: it cannot be loaded.
        ConfigError: a variable that the settings name is not set.
    """
    given = with_secrets(settings, reads_variables(name))
    try:
        if how.isolation == "none":
            return load_env(name, given)
        from agentrl_envs.isolation import Isolation, isolated

        return isolated(name, given, Isolation(how.python, how.workers, how.memory_mb))
    except EnvError as error:
        error.args = (told_without_secrets(str(error), settings),)
        raise


def make_sandbox(settings: SandboxSettings, token: str = "") -> Sandbox:
    """The sandbox that the settings name; starts nothing yet.

    Args:
        settings: of the sandbox.
        token: for the servers of a pool; empty takes the variable AGENTRL_SANDBOX_TOKEN.
    """
    limits = Limits(time_s=settings.time_s, memory_mb=settings.memory_mb, processes=settings.processes)
    if settings.backend == "broken":
        return open_sandbox("broken")
    more: dict[str, Any] = {}
    if settings.backend == "remote":
        more |= {"urls": settings.urls, "token": token or None}
    elif settings.libraries:
        more["libraries"] = settings.libraries
    if settings.backend == "docker":
        more["most"] = settings.containers
        more |= {name: value for name in ("image", "runtime") if (value := getattr(settings, name))}
    return open_sandbox(
        settings.backend,
        limits=limits,
        min_level=settings.min_level or None,
        allow_unsafe=settings.allow_unsafe,
        **more,
    )
