"""`env.name = "harbor:PATH"`: a task of Harbor, worked on with a shell in a container of its own.

The agent has one tool, `bash`. When it calls none, the task's tests are copied into the container and run,
and what they write is the reward. Knows nothing of how a task is written down.
"""

from __future__ import annotations

import asyncio
import weakref
import zlib
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from ..adapters.making import RangedEnv, make_class
from ..containers import packed
from ..errors import EnvError, SandboxFailure, SettingsError, ToolError
from ..tools import tool
from .rewards import reward_of
from .task import HarborTask, find_tasks, read_task, rows_of

if TYPE_CHECKING:
    from agentrl_sandbox.docker.workspace import Done, Workspace

__all__ = ["HarborEnv", "harbor_env"]

T = TypeVar("T")
_HELD_OUT = 4
"""One task in so many is held out."""
_REWARD_BYTES = 1 << 16
_LOGS = "/logs/verifier /logs/agent /logs/artifacts"


class HarborEnv(RangedEnv):
    """Work on a task with a shell; its own tests tell the reward."""

    max_turns = 30
    hook_timeout_s = (
        3600.0  # the first episode of a task builds its image; the tests have a limit of their own
    )
    required_fields = ("task",)
    tasks: ClassVar[Mapping[str, HarborTask]] = {}

    command_s: float = 120.0
    """Limit of one command; it is killed then."""
    output_chars: int = 16_000
    """Longest output of a command that the model is shown; the middle of a longer one is left out."""
    cpus: float = 1.0
    """Cores of a container, where the task does not say."""
    memory_mb: int = 2048
    """Memory of a container, where the task does not say."""
    processes: int = 512
    """Processes of a container at once."""
    network: str = "none"
    """Network of the engine for containers; "none" is none, whatever the task says."""
    build_network: str = ""
    """Network for building images; empty is the engine's own choice."""
    runtime: str = ""
    """Of containers: another runtime that the engine knows, such as "runsc"."""
    end_processes: bool = False
    """Whether what the agent left running is killed before the tests, which may want a server that runs."""
    reward_key: str = "reward"
    """Which number of a `reward.json` with several is the reward."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        # A command is killed in the container before.
        vars(self)["tool_timeout_s"] = self.command_s + 60.0
        self._open = AsyncExitStack()
        self._left_s = float("inf")
        self._task: HarborTask
        self._space: Workspace

    async def prompt(self, row: Mapping[str, Any]) -> str:
        """Build the task's image where it is not there, start its container; the instruction."""
        self._task = self._named(row["task"])
        self._left_s = self._task.agent_s or float("inf")
        await self._begin()
        return self._task.instruction

    async def close(self) -> None:
        """Remove the container with all that runs in it."""
        await self._open.aclose()

    @tool
    async def bash(self, command: str) -> str:
        """Run a command with bash. Files are kept between calls; each call begins in the same folder.

        Args:
            command: what bash reads; its output and exit status come back.
        """
        limit = min(self.command_s, self._left_s)
        if limit <= 0:
            raise ToolError(f"the {self._task.agent_s:g} seconds of this task are used up")
        clock = asyncio.get_running_loop().time
        began = clock()
        done = await self._run(command, limit, self._task.agent_user, most=4 * self.output_chars)
        self._left_s -= clock() - began
        output = _shortened(done.output, self.output_chars)
        if done.code is None:
            self._counted("harbor/timeouts")
            return f"{output}\n[killed after {limit:g} s]".lstrip()
        return f"{output}\n[exit status {done.code}]".lstrip()

    async def reward(self, row: Mapping[str, Any], answer: str | None) -> float:
        """What the task's tests leave in `/logs/verifier/reward.json` or `reward.txt`.

        Raises:
            EnvError: they do not end in time, or leave no reward that can be read.
        """
        task, log = self._task, "/logs/verifier/test-stdout.txt"
        what = f"the tests of the task {task.name!r}"
        if self.end_processes:
            await self._of_container(self._space.end_processes())
        # Nobody but the tests' user writes there: an agent that is another leaves no reward, nor a process
        # that goes on and writes one.
        uid = (await self._run("echo $EUID", 60.0, task.tests_user)).output.strip()
        await self._must("rm -rf -- /tests /logs/verifier && mkdir /logs/verifier")
        if uid != "0":
            await self._must(f"chown -- {int(uid)} /logs/verifier")
        await self._put({"tests": task.folder / "tests"})
        await self._must("chmod +x /tests/test.sh")
        done = await self._run(
            f"/tests/test.sh > {log} 2>&1", task.tests_s, task.tests_user, task.tests_variables
        )
        if done.code is None:
            raise EnvError(f"{what} did not end within {task.tests_s:g} s ([verifier] timeout_sec)")
        as_json = await self._read("/logs/verifier/reward.json")
        as_text = await self._read("/logs/verifier/reward.txt")
        if as_json is as_text is None:
            wrote = (await self._read(log) or done.output.encode()).decode(errors="replace").strip()[-600:]
            what += f" ({f'they wrote: {wrote}' if wrote else 'they wrote nothing'})"
        return reward_of(as_json, as_text, what, self.reward_key)

    async def solve(self, row: Mapping[str, Any]) -> None:
        """Run the task's own solution, for `agentrl check`. EnvError where there is none, or it fails."""
        folder = self._task.folder / "solution"
        if not (folder / "solve.sh").is_file():
            raise EnvError(f"{folder / 'solve.sh'} is missing")
        await self._put({"solution": folder})
        limit = self._task.agent_s or 600.0
        done = await self._run("bash /solution/solve.sh", limit, "0", self._task.solution_variables)
        if done.code != 0:
            how = (
                f"did not end within {limit:g} s" if done.code is None else f"failed with status {done.code}"
            )
            raise EnvError(f"{folder / 'solve.sh'} {how}; it wrote: {done.output.strip()[-600:]}")

    @classmethod
    def generate_rows(
        cls, count: int, *, split: Literal["train", "test"], seed: int = 0
    ) -> list[dict[str, Any]]:
        """Rows of tasks, `count` at most, for "generated:train:300".

        The checksum of its name decides whether a task is held out; a single one is not.

        Raises:
            SettingsError: no task is in this split.
        """
        held = {name for name in cls.tasks if zlib.crc32(name.encode()) % _HELD_OUT == 0}
        held = set() if len(cls.tasks) == 1 else held
        rows = [row for row in rows_of(cls.tasks) if (row["id"] in held) == (split == "test")]
        if not rows:
            raise SettingsError(
                f"none of the {len(cls.tasks)} tasks is in the split {split!r}: give rows of a file, "
                'with "task", the name of a folder'
            )
        return rows[:count]

    def _named(self, name: Any) -> HarborTask:
        if name not in self.tasks:
            raise EnvError(f"there is no task {name!r}; there are: {', '.join(self.tasks)[:300]}")
        return self.tasks[name]

    async def _begin(self) -> None:
        """The container of the task, with the folders that the format has."""
        from agentrl_sandbox import SandboxError
        from agentrl_sandbox.docker.shared_engine import shared_engine
        from agentrl_sandbox.docker.workspace import Workspace, WorkspaceFailure, WorkspaceShape

        task = self._task
        shape = WorkspaceShape(
            task.tag,
            task.memory_mb or self.memory_mb,
            task.cpus or self.cpus,
            self.processes,
            self.network,
            tuple(sorted(task.variables.items())),
            self.runtime or None,
        )
        try:
            engine = await self._open.enter_async_context(shared_engine())
            await self._build(engine)
            self._space = await Workspace.open(engine, shape)
        except WorkspaceFailure as error:
            raise EnvError(
                f"{task.folder / 'environment' / 'Dockerfile'} cannot be built: {error}"
            ) from error
        except SandboxError as error:
            raise SandboxFailure(f"no container for the task {task.name!r}: {error}") from error
        self._open.push_async_callback(self._space.close)
        await self._must(f"mkdir -p {_LOGS} && chmod a+rwx {_LOGS}")

    async def _build(self, engine: Any) -> None:
        """Build the image, once for all episodes that want it."""
        from agentrl_sandbox.docker.workspace import build

        task = self._task
        if task.image:
            return
        locks = _LOCKS.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(task.tag, asyncio.Lock()):
            await build(
                engine,
                str(task.folder / "environment"),
                task.tag,
                network=self.build_network,
                limit_s=task.build_s,
            )

    async def _run(
        self,
        command: str,
        limit_s: float,
        user: str,
        variables: Mapping[str, str] | None = None,
        most: int = 1 << 16,
    ) -> Done:
        task = self._task
        return await self._of_container(
            self._space.run(command, limit_s, user=user, folder=task.workdir, variables=variables, most=most)
        )

    async def _must(self, command: str) -> None:
        """Run a command as root that has to succeed."""
        done = await self._run(command, 60.0, "0")
        if done.code != 0:
            raise EnvError(
                f"{command!r} failed in the container of the task {self._task.name!r}: {done.output[-300:]}"
            )

    async def _put(self, files: Mapping[str, Path]) -> None:
        await self._of_container(self._space.put(packed(files), "/"))

    async def _read(self, path: str) -> bytes | None:
        return await self._of_container(self._space.read(path, _REWARD_BYTES))

    async def _of_container(self, work: Awaitable[T]) -> T:
        """What the container gives; SandboxFailure where it breaks."""
        from agentrl_sandbox import SandboxError

        try:
            return await work
        except SandboxError as error:
            raise SandboxFailure(f"the container of the task {self._task.name!r} broke: {error}") from error

    def _counted(self, name: str) -> None:
        if self._model is not None:
            self._model.count(name)


_LOCKS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = (
    weakref.WeakKeyDictionary()
)
"""By image: who builds it, the others wait."""


def _shortened(text: str, most: int) -> str:
    """A text, without the middle of what is longer than `most`."""
    text = text.strip("\n")
    if len(text) <= most:
        return text
    left = len(text) - most
    return f"{text[: most // 2]}\n[... {left:,} characters were left out ...]\n{text[-(most - most // 2) :]}"


def harbor_env(path: str, settings: Mapping[str, Any] | None = None) -> type[HarborEnv]:
    """The environment of `env.name = "harbor:PATH"`.

    Args:
        path: folder of a task, or of tasks.
        settings: of the environment, see `HarborEnv`.

    Raises:
        EnvError: there is no task, or one cannot be played; names file and field.
    """
    tasks = {folder.name: read_task(folder) for folder in find_tasks(Path(path).resolve())}
    body = {"tasks": tasks, "example_rows": tuple(rows_of(tasks))}
    made, _ = make_class(HarborEnv, body, settings or {})
    return made
