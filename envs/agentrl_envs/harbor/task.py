"""A task as a folder: `task.toml`, `instruction.md`, `environment/`, `tests/test.sh`, `solution/solve.sh`.

The format is that of Harbor, schema 1 (https://harborframework.com). What it allows and this does not do is
refused when a task is read, with the file and the field. Knows nothing of containers.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EnvError

__all__ = ["HarborTask", "find_tasks", "read_task"]

_CANARY = re.compile(r"(<!--.*canary.*-->|#.*canary.*)$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-(.*?))?\}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG])B?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HarborTask:
    """What a task says."""

    folder: Path
    instruction: str
    image: str = ""
    """An image that is there; empty: built from `environment/Dockerfile`."""
    build_s: float = 600.0
    cpus: float | None = None
    memory_mb: int | None = None
    workdir: str | None = None
    """Where commands begin; None is the image's."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    agent_s: float | None = None
    """Seconds that all commands of the agent may take together."""
    agent_user: str = ""
    tests_s: float = 600.0
    tests_user: str = ""
    tests_variables: Mapping[str, str] = field(default_factory=dict[str, str])
    solution_variables: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def tag(self) -> str:
        """Name of its image: the same as long as no file of its environment changes."""
        if self.image:
            return self.image
        top, digest = self.folder / "environment", hashlib.sha256()
        for path in sorted(top.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(top)}\\0{os.access(path, os.X_OK)}\\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return f"agentrl-harbor:{digest.hexdigest()[:24]}"


def find_tasks(path: Path) -> list[Path]:
    """The folder of a task, or those of all tasks in a folder, by name. EnvError where there are none."""
    if (path / "task.toml").is_file():
        return [path]
    found = sorted(one.parent for one in path.glob("*/task.toml"))
    if not found:
        raise EnvError(
            f"harbor:{path}: want the folder of a task, with a task.toml, or a folder of such folders"
        )
    return found


def read_task(folder: Path) -> HarborTask:
    """The task of a folder.

    Raises:
        EnvError: a file is missing, or a field is of another type or asks for what is not done.
    """
    path = folder / "task.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EnvError(f"{path} cannot be read: {error}") from error
    fields = _Fields(path, table)
    _refuse(fields)
    image = fields.text("environment", "docker_image")
    _expect_files(folder, image)
    return HarborTask(
        folder=folder,
        instruction=_instruction(folder / "instruction.md"),
        image=image,
        build_s=fields.number("environment", "build_timeout_sec") or 600.0,
        cpus=fields.number("environment", "cpus"),
        memory_mb=fields.size("environment", "memory"),
        workdir=fields.text("environment", "workdir") or None,
        variables=fields.variables("environment", "env"),
        agent_s=fields.number("agent", "timeout_sec"),
        agent_user=fields.user("agent"),
        tests_s=fields.number("verifier", "timeout_sec") or 600.0,
        tests_user=fields.user("verifier"),
        tests_variables=fields.variables("verifier", "env"),
        solution_variables=fields.variables("solution", "env"),
    )


def _expect_files(folder: Path, image: str) -> None:
    wanted = ["instruction.md", "tests/test.sh", *([] if image else ["environment/Dockerfile"])]
    for name in wanted:
        if not (folder / name).is_file():
            also = " (or [environment] docker_image in task.toml)" if name.startswith("environment") else ""
            raise EnvError(f"{folder / name} is missing{also}")


def _instruction(path: Path) -> str:
    """What the agent is told: without the marks at the top that keep benchmarks out of training data."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvError(f"{path} cannot be read: {error}") from error
    while lines and _CANARY.match(lines[0].strip()):
        lines.pop(0)
    text = "\n".join(lines).strip()
    if not text:
        raise EnvError(f"{path} is empty")
    return text


def _refuse(fields: _Fields) -> None:
    """EnvError for what a task asks for and this does not do."""
    folder = fields.path.parent
    for name in ("docker-compose.yaml", "docker-compose.yml"):
        if (folder / "environment" / name).exists():
            raise EnvError(
                f"{folder / 'environment' / name}: tasks of several containers are not done; a task has one"
            )
    fields.refuse("steps", None, "tasks of several steps are not done")
    for name in ("gpus", "tpu", "mcp_servers", "healthcheck"):
        fields.refuse("environment", name, "this is not done")
    if fields.text("environment", "os").lower() not in ("", "linux"):
        fields.fail("environment", "os", "only linux is done")
    for section in ("environment", "agent", "verifier"):
        if fields.text(section, "network_mode") == "allowlist":
            fields.fail(section, "network_mode", "a list of allowed hosts is not done")
    for name in ("environment", "collect"):
        fields.refuse("verifier", name, "tests run in the agent's container")
    if fields.text("verifier", "environment_mode") not in ("", "shared"):
        fields.fail("verifier", "environment_mode", "tests run in the agent's container")


class _Fields:
    """The fields of a `task.toml`, each read with its type; errors name file and field."""

    def __init__(self, path: Path, table: Mapping[str, Any]) -> None:
        self.path, self._table = path, table

    def fail(self, section: str, name: str, want: str) -> None:
        """EnvError about a field."""
        raise EnvError(f"{self.path}: [{section}] {name} = {self._get(section, name)!r}: {want}")

    def refuse(self, section: str, name: str | None, why: str) -> None:
        """EnvError where a section, or a field of one, is there and not empty."""
        if name is None:
            if self._table.get(section):
                raise EnvError(f"{self.path}: {section}: {why}")
        elif self._get(section, name):
            self.fail(section, name, why)

    def _get(self, section: str, name: str) -> Any:
        table = self._table.get(section, {})
        if not isinstance(table, Mapping):
            raise EnvError(f"{self.path}: {section} must be a table")
        return table.get(name)

    def text(self, section: str, name: str) -> str:
        """A text; empty where there is none."""
        value = self._get(section, name)
        if value is not None and not isinstance(value, str):
            self.fail(section, name, "must be a text")
        return value or ""

    def number(self, section: str, name: str) -> float | None:
        """A positive number; None where there is none."""
        value = self._get(section, name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            self.fail(section, name, "must be a positive number")
        return float(value)

    def size(self, section: str, name: str) -> int | None:
        """Megabytes of `NAME_mb`, or of the older `NAME = "2G"`."""
        value = self._get(section, name)
        if value is None:
            megabytes = self.number(section, f"{name}_mb")
            return None if megabytes is None else int(megabytes)
        found = _SIZE.match(value.strip()) if isinstance(value, str) else None
        if found is None:
            self.fail(section, name, 'must be a size such as "2G"')
            return None
        return int(float(found[1]) * {"K": 1 / 1024, "M": 1, "G": 1024}[found[2].upper()])

    def user(self, section: str) -> str:
        """A name or a number of a user; empty where there is none."""
        value = self._get(section, "user")
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            self.fail(section, "user", "must be a name or a number")
        return "" if value is None else str(value)

    def variables(self, section: str, name: str) -> dict[str, str]:
        """Variables of an environment; `${NAME}` and `${NAME:-default}` are read from this process's."""
        table = self._get(section, name)
        if table is None:
            return {}
        if not isinstance(table, Mapping) or not all(isinstance(one, str) for one in table.values()):
            self.fail(section, name, "must be a table of texts")
        return {key: self._filled(value, f"[{section}.{name}] {key}") for key, value in table.items()}

    def _filled(self, value: str, where: str) -> str:
        for found in _VARIABLE.finditer(value):
            if found[2] is None and found[1] not in os.environ:
                raise EnvError(f"{self.path}: {where}: the variable {found[1]} is not set")
        return _VARIABLE.sub(lambda found: os.environ.get(found[1], found[2] or ""), value)


def rows_of(tasks: Mapping[str, HarborTask]) -> Iterator[dict[str, Any]]:
    """A row for each task."""
    return ({"id": name, "task": name} for name in tasks)
