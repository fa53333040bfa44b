"""Control groups for sessions: memory, processes, CPU time; version 1, 2 or both mounted side by side.

Made where this process may write, else not at all: then rlimits and a watch on memory stand in. Groups are
used again by later sessions, because the kernel keeps what is left of removed ones for long. Knows nothing
of sandboxes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_counter = itertools.count()


@dataclass(slots=True)
class Group:
    """One session's control group; in version 1 a directory per controller."""

    memory: Path | None
    pids: Path | None
    unified: bool
    usage: Path | None = None
    oom_kills: int = 0
    directories: list[Path] = field(default_factory=list)

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Set the limits and forget what came before."""
        if self.memory:
            if self.unified:
                _write(self.memory / "memory.max", memory_bytes)
                _try_write(self.memory / "memory.swap.max", 0)
                _try_write(self.memory / "memory.oom.group", 0)
            else:
                # Lowering below memsw or raising above it is refused: try both orders.
                _try_write(self.memory / "memory.memsw.limit_in_bytes", 1 << 62)
                _write(self.memory / "memory.limit_in_bytes", memory_bytes)
                _try_write(self.memory / "memory.memsw.limit_in_bytes", memory_bytes)
        if self.pids:
            _write(self.pids / "pids.max", processes)
        self.forget()

    def forget(self) -> None:
        """Let what the kernel killed until now be no sign of what it kills from here on."""
        self.oom_kills = self._oom_kills()

    def open_entrances(self) -> list[int]:
        """Descriptors to which a process writes `0` to join."""
        return [os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for path in self.directories]

    def open_usage(self) -> int:
        """A descriptor of the CPU time that the group has used; -1 where the kernel does not count it."""
        if self.usage is None:
            return -1
        try:
            return os.open(self.usage, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1

    def out_of_memory(self) -> bool:
        """True when the kernel has killed for memory since `limit` or `forget`."""
        return self._oom_kills() > self.oom_kills

    def pids_inside(self) -> list[int]:
        """Processes in the group."""
        with contextlib.suppress(OSError):
            return [int(line) for line in (self.directories[0] / "cgroup.procs").read_text().split()]
        return []

    def remove(self) -> bool:
        """Remove the directories; False when something still lives there."""
        done = True
        for path in self.directories:
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                done = False
        return done

    def _oom_kills(self) -> int:
        if not self.memory:
            return 0
        name = "memory.events" if self.unified else "memory.oom_control"
        try:
            for line in (self.memory / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        except OSError:
            return 0
        return 0


class Groups:
    """A pool of control groups below one of this process's own. Thread-safe."""

    def __init__(self, parents: dict[str, Path], unified: bool):
        self._parents, self._unified = parents, unified
        self._free: list[Group] = []
        self._lock = threading.Lock()
        self._name = f"agentrl-{os.getpid()}-{next(_counter)}"
        for parent in set(parents.values()):
            _sweep(parent)
            (parent / self._name).mkdir()
        if unified:
            for parent in set(parents.values()):
                _write(parent / self._name / "cgroup.subtree_control", "+memory +pids")

    @classmethod
    def find(cls) -> tuple[Groups | None, str]:
        """The pool, or None and the reason why there is none."""
        try:
            parents, unified = _parents()
        except OSError as error:
            return None, f"control groups cannot be read: {error}"
        if not parents:
            return None, "no memory and pids controllers are mounted"
        if "cpuacct" in parents and not os.access(parents["cpuacct"], os.W_OK):
            del parents["cpuacct"]
        for name, parent in parents.items():
            if not os.access(parent, os.W_OK):
                return None, f"{parent} ({name} controller) is not writable by this user"
        groups = None
        try:
            groups = cls(parents, unified)
            probe = groups.take(64 << 20, 16)
            probe.remove()
        except OSError as error:
            if groups is not None:
                groups.close()
            return None, f"control groups refused: {error}"
        return groups, ""

    def take(self, memory_bytes: int, processes: int) -> Group:
        """A group with these limits."""
        with self._lock:
            group = self._free.pop() if self._free else None
        if group is None:
            group = self._make()
        group.limit(memory_bytes, processes)
        return group

    def give_back(self, group: Group) -> None:
        """Keep an empty group for the next session; one that is not empty is left to `close`."""
        if not group.pids_inside():
            with self._lock:
                self._free.append(group)

    def close(self) -> None:
        """Remove the groups; waits a moment for processes that are being killed to leave them."""
        end = time.monotonic() + 3.0
        while self.leftovers() and time.monotonic() < end:
            for parent in set(self._parents.values()):
                _remove(parent / self._name)
            if self.leftovers():
                time.sleep(0.01)

    def leftovers(self) -> list[str]:
        """Groups that are still there; for leak checks."""
        tops = {parent / self._name for parent in self._parents.values()}
        return [str(top) for top in tops if top.exists()]

    def _make(self) -> Group:
        number = next(_counter)
        paths = {name: parent / self._name / f"s{number}" for name, parent in self._parents.items()}
        directories = list(dict.fromkeys(paths.values()))
        for path in directories:
            path.mkdir()
        if self._unified:
            usage = directories[0] / "cpu.stat"
        else:
            usage = paths["cpuacct"] / "cpuacct.usage" if "cpuacct" in paths else None
        return Group(paths.get("memory"), paths.get("pids"), self._unified, usage, directories=directories)


def _remove(top: Path) -> None:
    """Remove a group and those below it, as far as they are empty."""
    with contextlib.suppress(OSError):
        for path in top.iterdir():
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
        top.rmdir()


def _sweep(parent: Path) -> None:
    """Remove what sandboxes left behind whose process was killed."""
    for top in parent.glob("agentrl-*-*"):
        pid = top.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _remove(top)


def _parents() -> tuple[dict[str, Path], bool]:
    """`{controller: directory of this process's group}`, and whether it is version 2."""
    mounts: dict[str, Path] = {}
    unified: Path | None = None
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        where = Path(fields.split()[4])
        if kind == "cgroup2":
            unified = where
        elif kind == "cgroup":
            for name in ("memory", "pids", "cpuacct"):
                if name in options.split()[-1].split(","):
                    mounts[name] = where
    lines = os.fsdecode(Path("/proc/self/cgroup").read_bytes()).split("\n")[:-1]
    own = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    if "memory" in mounts or "pids" in mounts:
        found = {}
        for name, where in mounts.items():
            path = next((path for names, path in own.items() if name in names.split(",")), "/")
            inside = where / path.lstrip("/")
            found[name] = inside if inside.exists() else where
        return found, False
    if unified is None:
        return {}, False
    # Version 2 allows no processes beside groups: go to the parent of this process's own group.
    mine = unified / own.get("", "/").lstrip("/")
    for parent in (mine, mine.parent):
        with contextlib.suppress(OSError):
            given = (parent / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(given) and unified in (parent, *parent.parents):
                return {"memory": parent, "pids": parent}, True
    return {}, True


def _write(path: Path, value: object) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _try_write(path: Path, value: object) -> None:
    with contextlib.suppress(OSError):
        _write(path, value)
