"""`ProgramEnv`: the episode is a program, which reaches its model over HTTP like any other.

The program is given a base URL and an API key in the variables that agents read (`OPENAI_BASE_URL`,
`OPENAI_API_KEY`, `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`), and the prompt on its standard input. What it
prints is its answer. Knows nothing of tokens, or of how the model is served.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from agentrl_sandbox.result import Ended

from .containers import ContainedProgram
from .errors import EnvError
from .messages import text_of
from .model import Access, GatewayCalls
from .processes import Program
from .question import QuestionEnv
from .secret_text import filled_words, masked

__all__ = ["ProgramEnv", "program_env"]

_GRACE_S = 5.0
"""Seconds that a program has to end after a limit of its episode is reached, before it is killed."""


class ProgramEnv(QuestionEnv):
    """Runs a program for each row; the program is the agent.

    Set `command`, or `env.name = "program:COMMAND"`. `{field}` in an argument is replaced by the row's. By
    default the answer is what the program prints, compared with the row's `answer`; write
    `reward(row, answer)` for anything else, or set `grade_command`. A program that fails (an exit status
    other than 0), never ends or cannot be started is a failed episode and no reward.
    """

    max_turns = 32
    hidden: ClassVar[tuple[str, ...]] = ("answer", "solution", "gold", "final", "target")
    """Fields of the row that the program is not given."""

    command: str = ""
    """The program and its arguments; no shell reads it (write `sh -c '...'` for one)."""
    grade_command: str = ""
    """A program that is started when the agent has ended. It reads a JSON object from its standard input
    (`row`, `answer`, `url`, `key`), and hands in the reward by `POST url` with that key, which the agent
    never sees."""
    folder: str = ""
    """Where programs are started; empty makes a temporary folder for each episode, which is deleted. A
    container gets a copy of it."""
    image: str = ""
    """Image of a container in which the agent is started; empty starts it as a process of this machine."""
    runtime: str = ""
    """Of containers: another runtime that the engine knows, such as "runsc"."""
    cpus: float = 1.0
    """Of containers: cores."""
    processes: int = 64
    """Of containers: processes and threads at once."""
    folder_mb: int = 64
    """Of containers: size of the files that it writes."""
    variables: dict[str, str] = {}  # noqa: RUF012 - a setting; each instance has its own
    """More environment variables of the agent."""
    time_s: float = 300.0
    """Wall time of the program."""
    cpu_s: int = 120
    """CPU time of each of its processes."""
    memory_mb: int = 4096
    """Address space of each of its processes, 0 sets no limit; in a container, memory of all of them."""
    output_kb: int = 1024
    """Output that is kept; what follows is dropped."""
    keep_lines: int = 0
    """Lines at the end of the output that are the answer; 0 takes all of it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.ended: Ended | None = None
        self._handed_in: Any = None

    async def play(self, row: Mapping[str, Any]) -> str | None:
        """Run the program; its answer."""
        if not self.command:
            raise EnvError('no program: set env.settings.command, or env.name = "program:COMMAND"')
        text = "\n\n".join(text_of(message) for message in self._messages(self.prompt(row)))
        async with self.speaker.serve() as access:
            with tempfile.TemporaryDirectory(prefix="agentrl-program-", ignore_cleanup_errors=True) as made:
                folder = Path(made if self.image or not self.folder else self.folder)
                self.ended = await self._until_end(row, text, access, folder)
                answer = None if self.ended is None else self._answer(self.ended)
                if self.grade_command and access.calls.limit is None:
                    await self._grade_by_program(row, answer, access, folder)
        return answer

    def reward(self, row: Mapping[str, Any], answer: str | None) -> Any:
        """What the grader handed in, else whether the answer is the row's."""
        if self.grade_command:
            return self._handed_in
        if answer is not None and "boxed" not in answer and answer != str(row.get("answer")).strip():
            answer = f"\\boxed{{{answer}}}"  # what a program prints is the answer itself
        return super().reward(row, answer)

    def _answer(self, ended: Ended) -> str:
        lines = ended.out.strip().splitlines()
        return "\n".join(lines[-self.keep_lines :] if self.keep_lines else lines)

    async def _until_end(
        self, row: Mapping[str, Any], text: str, access: Access, folder: Path
    ) -> Ended | None:
        """Run the agent until it ends; None where a limit of the episode ended it.

        Raises:
            EnvError: it failed by itself, or the model did.
        """
        shown = {name: value for name, value in row.items() if name not in self.hidden}
        variables = self._variables(access, shown)
        if self.image:
            program: Any = self._contained(shown, variables, access, folder)
        else:
            program = self._process(filled(self.command, shown), folder, variables)
        running = asyncio.ensure_future(program.run(text))
        over = asyncio.ensure_future(access.calls.ended())
        try:
            await asyncio.wait({running, over}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await asyncio.wait({running}, timeout=_GRACE_S)
        finally:
            over.cancel()
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
        return self._how_it_ended(running, access.calls)

    def _how_it_ended(self, running: asyncio.Task[Ended] | Any, calls: GatewayCalls) -> Ended | None:
        if running.cancelled() or (calls.limit is not None and running.exception() is not None):
            return None
        ended: Ended = running.result()
        if ended.cut:
            self.speaker.count("program/output_cut")
        if ended.code != 0 and calls.limit is None:
            raise EnvError(f"the program {masked(self.command)!r} failed: {ended.why}")
        return ended if ended.code == 0 else None

    def _variables(self, access: Access, shown: Mapping[str, Any]) -> dict[str, str]:
        return {
            "OPENAI_BASE_URL": f"{access.url}/v1",
            "OPENAI_API_BASE": f"{access.url}/v1",
            "OPENAI_API_KEY": access.key,
            "ANTHROPIC_BASE_URL": access.url,
            "ANTHROPIC_API_KEY": access.key,
            "AGENTRL_ROW": json.dumps(shown, default=str),
            "PYTHONUNBUFFERED": "1",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            **self.variables,
        }

    def _contained(
        self, shown: Mapping[str, Any], variables: Mapping[str, str], access: Access, folder: Path
    ) -> ContainedProgram:
        """The agent in a container, with the files of `self.folder` and those that its command names."""
        from agentrl_sandbox.docker.program import ContainerLimits

        command, files = sent_along(self.command, shown)
        whole = {} if not self.folder else {".": Path(self.folder)}
        limits = ContainerLimits(
            memory_mb=self.memory_mb or ProgramEnv.memory_mb,
            cpus=self.cpus,
            cpu_s=self.cpu_s,
            processes=self.processes,
            file_mb=self.folder_mb,
            output_bytes=self.output_kb << 10,
        )
        return ContainedProgram(
            command,
            {**whole, **files},
            variables,
            access.url,
            self.image,
            limits,
            self.time_s,
            left=folder if self.grade_command else None,
            runtime=self.runtime,
        )

    def _process(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Program:
        return Program(command, folder, variables, self.time_s, self.cpu_s, self.memory_mb, self.output_kb)

    async def _grade_by_program(
        self, row: Mapping[str, Any], answer: str | None, access: Access, folder: Path
    ) -> None:
        """Start the grader, whose key stands in its standard input alone, and wait for what it hands in."""
        given = {
            "row": dict(row),
            "answer": answer,
            "url": f"{access.url}/v1/agentrl/reward",
            "key": access.reward_key,
        }
        # What an agent left is data here: `python -m` and `python -c` would import modules from that folder.
        safe = {"PYTHONSAFEPATH": "1"} if self.image else {}
        grader = self._process(filled(self.grade_command, row), folder, safe)
        ended = await grader.run(json.dumps(given, default=str))
        try:
            self._handed_in = await asyncio.wait_for(access.calls.reward(), 0.1)
        except TimeoutError:
            raise EnvError(
                f"the grader {masked(self.grade_command)!r} handed in no reward: {ended.why}"
            ) from None


def filled(command: str, row: Mapping[str, Any]) -> list[str]:
    """The arguments of a command: `{field}` by the row's field, `$NAME` read, files by their path."""
    # Files are meant from where the run was started; programs start in a folder of their own.
    arguments = [os.path.abspath(one) if os.path.isfile(one) else one for one in _words(command)]
    return _with_fields(arguments, row)


def sent_along(command: str, row: Mapping[str, Any]) -> tuple[list[str], dict[str, Path]]:
    """As `filled`, for a container: its arguments, and the files that go with it, by their names there.

    A relative path of a file is sent along; an absolute one is a path of the image.

    Raises:
        EnvError: the command cannot be read, or names two files of one name.
    """
    arguments: list[str] = []
    files: dict[str, Path] = {}
    for one in _words(command):
        path = Path(one)
        if path.is_absolute() or not path.is_file():
            arguments.append(one)
            continue
        if files.setdefault(path.name, path) != path:
            raise EnvError(
                f"the command {masked(command)!r} names two files that are called {path.name!r}, and both go "
                "into one folder of a container: rename one"
            )
        arguments.append(path.name)
    return _with_fields(arguments, row), files


def _words(command: str) -> list[str]:
    try:
        return filled_words(shlex.split(command))
    except ValueError as error:
        raise EnvError(f"the command {masked(command)!r} cannot be read: {error}") from error


def _with_fields(arguments: list[str], row: Mapping[str, Any]) -> list[str]:
    # In one pass: what a row's own text has in braces is text.
    return [re.sub(r"\{(\w+)\}", lambda found: str(row.get(found[1], found[0])), one) for one in arguments]


def program_env(command: str, settings: Mapping[str, Any] | None = None) -> type[ProgramEnv]:
    """The environment of `env.name = "program:COMMAND"`; it is the same with any settings."""
    return type("ProgramEnv", (ProgramEnv,), {"command": command, "__module__": __name__})
