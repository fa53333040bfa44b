"""`env.name = "verifiers:NAME"`, 0.4 line: a taskset plays itself with our model, through the gateway.

Its harness, a program, asks for the messages; its tools are servers of its own; its task's rewards are the
reward. Knows nothing of what its tasks do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import EnvError, EnvNotFound, SettingsError
from ..model import Access
from ..raised import error_text
from ..secret_text import masked
from .loops import LoopThreads
from .making import RangedEnv, make_class

__all__ = ["VerifiersTaskEnv", "tasks_env"]

_HELD_OUT = 10
"""Every so many tasks one is held out: a taskset has no split of its own."""


class VerifiersTaskEnv(RangedEnv):
    """A task of verifiers."""

    max_turns = 64
    required_fields = ("task",)
    env_id: ClassVar[str] = ""
    given: ClassVar[Mapping[str, Any]] = {}
    """Settings that the class was made with."""

    arguments: dict[str, Any] = {}  # noqa: RUF012 - a setting; each instance has its own
    """Fields of the taskset's own settings."""
    harness: str = ""
    """The program that plays; empty is the taskset's own, or `null` (tools alone) where it has none."""
    runtime: str = "subprocess"
    """Where programs run: on this machine, or `docker`, `podman`, ..."""
    config: dict[str, Any] = {}  # noqa: RUF012 - a setting; each instance has its own
    """More of the environment's settings, as verifiers names them."""
    time_s: float = 600.0
    """Within which an episode must end."""
    loops: int = 1
    """Event loops that share the episodes, each with a copy of the environment."""

    _scored: float | None = None

    async def play(self, row: Mapping[str, Any]) -> str | None:
        """Let the harness play the task; the text of its last message."""
        threads = _threads(self.env_id, _key({name: getattr(self, name) for name in _LOADED}))
        async with self.speaker.serve() as access:
            with threads.taken(max(1, self.loops)) as thread:
                episode = await thread.run(thread.made.run(row["task"], access))
            limit = await asyncio.to_thread(lambda: access.calls.limit)
        if limit is not None:
            self._scored = self.lowest  # its program was refused more, and could not end as it would have
            return None
        if (why := _failed(episode)) is not None:
            raise EnvError(f"verifiers:{self.env_id}: {why}")
        [trace] = episode.traces
        self._scored = float(trace.reward)
        said = trace.assistant_messages
        return str(said[-1].content or "") if said else None

    def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """What the task's rewards gave. EnvError where it was not played."""
        if self._scored is None:
            raise EnvError(
                f"verifiers:{self.env_id} scores what its own harness has played, and nothing else"
            )
        return self._scored

    @classmethod
    def generate_rows(
        cls, count: int, *, split: Literal["train", "test"], seed: int = 0
    ) -> list[dict[str, Any]]:
        """Its tasks in order; every tenth is held out. SettingsError: it has fewer."""
        rows = list(itertools.islice(_rows(cls.env_id, _key(cls.given), split), count))
        if len(rows) < count:
            raise SettingsError(
                f"verifiers:{cls.env_id} has {len(rows)} tasks for {split!r}, and {count} are wanted"
            )
        return rows


_LOADED = ("arguments", "harness", "runtime", "config", "time_s")
"""Settings that an environment is loaded with."""


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps({name: settings[name] for name in _LOADED if name in settings}, sort_keys=True)


def _rows(env_id: str, key: str, split: str) -> Iterator[dict[str, Any]]:
    for number, task in enumerate(_loaded(env_id, key).taskset):
        if (number % _HELD_OUT == _HELD_OUT - 1) == (split == "test"):
            data = task.data.model_dump(mode="json")
            yield {"id": f"{split}-{number}", "prompt": task.data.prompt_text, "task": data}


class _Playing:
    """An environment with what it serves for all its episodes: used in one event loop."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._serving: asyncio.Task[Any] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def run(self, task: Mapping[str, Any], access: Access) -> Any:
        """Play a task."""
        import verifiers.v1 as vf

        if self._serving is None or (self._serving.done() and self._serving.exception()):
            self._serving = asyncio.ensure_future(self._stack.enter_async_context(self._env.serving()))
        await asyncio.shield(self._serving)
        kind = type(self._env.taskset).task_type()
        made = kind(kind.data_type().model_validate(task), self._env.config.taskset.task)
        # The gateway takes the key from this header; the other says that there is none.
        client = vf.EvalClientConfig(
            base_url=f"{access.url}/v1", api_key_var="AGENTRL_NO_KEY", headers={"x-api-key": access.key}
        )
        return await self._env.run_episode(made, vf.ModelContext("policy", client))


@lru_cache(maxsize=32)
def _threads(env_id: str, key: str) -> LoopThreads:
    return LoopThreads(lambda: _Playing(_load(env_id, key)))


@lru_cache(maxsize=32)
def _loaded(env_id: str, key: str) -> Any:
    """The environment that tells its tasks."""
    return _load(env_id, key)


def _load(env_id: str, key: str) -> Any:
    """The environment.

    Raises:
        EnvNotFound: no such taskset, or no such file.
        EnvError: settings that it does not have, several agents, or a program that runs the model's code.
    """
    import verifiers.v1 as vf

    given = json.loads(key)
    name = _importable(env_id)
    try:
        config = _config(name, given)
        _check(env_id, config, given.get("runtime", VerifiersTaskEnv.runtime))
        return vf.load_environment(config)
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise EnvNotFound(masked(f"verifiers:{env_id} cannot be loaded: {error_text(error)}")) from error
    except Exception as error:
        raise EnvError(masked(f"verifiers:{env_id} cannot be loaded: {error_text(error)}")) from error


def _importable(env_id: str) -> str:
    """The module of a taskset; one in a file can be imported from then on, by its servers too."""
    if not env_id.endswith(".py"):
        return env_id
    file = Path(env_id).resolve()
    if not file.is_file():
        raise EnvNotFound(f"no file {env_id}")
    folder, path = str(file.parent), os.environ.get("PYTHONPATH", "")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if folder not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, path)))
    return file.stem


def _config(name: str, given: Mapping[str, Any]) -> Any:
    """The environment's settings: its agent has our harness and runtime where they say nothing else."""
    import verifiers.v1 as vf

    raw = {**given.get("config", {})}
    kind = vf.env_config_type(name, raw.get("id", ""))
    raw["taskset"] = {**raw.get("taskset", {}), "id": name, **given.get("arguments", {})}
    raw["timeout"] = {"episode": given.get("time_s", VerifiersTaskEnv.time_s), **raw.get("timeout", {})}
    harness = given.get("harness") or ("" if vf.default_harness_id(name) != "bash" else "null")
    for role, field in kind.model_fields.items():
        if isinstance(field.default, vf.AgentConfig):
            own = {"runtime": {"type": given.get("runtime", VerifiersTaskEnv.runtime)}}
            own |= {"harness": {"id": harness}} if harness else {}
            raw[role] = {**own, **raw.get(role, {})}
    return vf.resolve_env_config(raw)


def _check(env_id: str, config: Any, runtime: str) -> None:
    import verifiers.v1 as vf

    harnesses = config.agent_harnesses()
    if len(harnesses) != 1:
        raise EnvError(
            f"verifiers:{env_id} has several agents ({', '.join(harnesses)}), and one policy learns"
        )
    for harness in harnesses.values():
        if runtime == "subprocess" and vf.load_harness(harness).EXECUTES_CODE:
            raise EnvError(
                f"verifiers:{env_id}: {harness.id!r} runs what the model writes: set runtime to docker"
            )


def _failed(episode: Any) -> str | None:
    """Why an episode is none, in words."""
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if errors:
        return f"{errors[-1].type}: {errors[-1].message}"
    return None if episode.ok else "it did not end well, and says no more"


def tasks_env(rest: str, settings: Mapping[str, Any]) -> type[VerifiersTaskEnv]:
    """The environment of a taskset: an installed one, or `file.py`."""
    made, given = make_class(VerifiersTaskEnv, {"env_id": rest, "__doc__": f"{rest} of verifiers."}, settings)
    made.given = dict(given)
    made.example_rows = tuple(itertools.islice(_rows(rest, _key(given), "train"), 8))
    return made
