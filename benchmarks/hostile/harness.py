"""Runs one hostile case on any backend, then looks for what it left and asks for a healthy answer.

Knows the public interface, and of backends only what a host can see of their processes. Refuses destructive
cases on a sandbox that does not isolate.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from agentrl_sandbox.interface import Sandbox, Session
from agentrl_sandbox.level import Level
from agentrl_sandbox.limits import Limits
from agentrl_sandbox.local.canaries import Traps
from agentrl_sandbox.local.cgroups import Group, Groups

from .case import Case, Surroundings

LIMITS = Limits(time_s=1.0, memory_mb=256, processes=24, file_mb=16, files=500, open_files=128, grace_s=0.4)


@contextmanager
def own_group(memory_bytes: int, processes: int) -> Iterator[Group | None]:
    """This process in a control group of its own, and back again; None where there can be none."""
    groups, _ = Groups.find()
    if groups is None:
        yield None
        return
    group = groups.take(memory_bytes, processes)
    before = _entrances(group.directories)
    for entrance in group.open_entrances():
        os.write(entrance, b"0")
        os.close(entrance)
    try:
        yield group
    finally:
        for path in before:
            with suppress(OSError):
                Path(path).write_text("0")
        groups.close()


def _entrances(directories: list[Path]) -> list[str]:
    """`cgroup.procs` of the groups that this process is in now."""
    found = []
    mounts = {mount for directory in directories for mount in directory.parents}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        found += [
            f"{mount}{path}/cgroup.procs".replace("//", "/")
            for mount in mounts
            if mount.name in names.split(",") or (not names and (mount / "cgroup.controllers").exists())
        ]
    return found


class Refused(RuntimeError):
    """A destructive case was to run without isolation."""


@asynccontextmanager
async def surroundings() -> AsyncIterator[Surroundings]:
    """Things of the host for the cases to reach for."""
    with Traps() as traps:
        yield Surroundings(
            str(traps.secret),
            traps.word,
            traps.port,
            traps.target_pid,
            str(traps.planted),
            "\\0" + traps.abstract[1:],
        )


async def endure(sandbox: Sandbox, case: Case) -> str | None:
    """`endure_once`, and once more when the machine was too busy to tell."""
    complaint = await endure_once(sandbox, case)
    if complaint and "starved" in complaint:
        complaint = await endure_once(sandbox, case)
    return complaint


async def endure_once(sandbox: Sandbox, case: Case) -> str | None:
    """Run `case` in a session of its own, with a neighbour beside it; what went wrong, or None.

    Checks the outcome, that the same session answers afterwards, that the neighbour noticed nothing, and that
    closing takes no longer than it should.
    """
    if case.destructive and sandbox.level is Level.UNSAFE:
        raise Refused(f"case {case.id} is destructive and this sandbox does not isolate")
    neighbour = await sandbox.open(LIMITS)
    session = await sandbox.open(LIMITS)
    try:
        await _settle_in(neighbour)
        async with surroundings() as things:
            result = None
            for step in case.steps:
                if result is not None and case.pause_s:
                    await asyncio.sleep(case.pause_s)
                result = await session.run(things.fill(step), case.time_s, stdin=case.stdin)
            assert result is not None
            complaint = case.complaint(result, things, exact_time=sandbox.level >= Level.CONTAINED)
        if complaint:
            return complaint
        return await _healthy(session, "the session") or await _healthy(
            neighbour, "the neighbour", state=True
        )
    finally:
        async with asyncio.timeout(20):
            await session.close()
            await neighbour.close()


async def _settle_in(neighbour: Session) -> None:
    await neighbour.run(
        "import builtins\nbuiltins.NEIGHBOUR = 1\nopen('neighbour-file', 'w').write('x')\nkept = 41"
    )


async def _healthy(session: Session, who: str, *, state: bool = False) -> str | None:
    result = await session.run("kept + 1" if state else "40 + 2", 5.0)
    if result.value != "42":
        # One lost session is how some cases end; the next call must be served.
        again = await session.run("40 + 2", 5.0)
        if state or again.value != "42":
            return f"{who} is not healthy: {result.status} {result.text[:300]}, then {again.text[:300]}"
    return None


class Footprint:
    """What this process has on the machine: processes below it, descriptors, mounts."""

    def __init__(self) -> None:
        self.processes = descendants(os.getpid())
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.mounts = _mounts()

    async def growth(self, seconds: float = 8.0) -> str | None:
        """What has been left over since, after waiting for it to go."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            left = self._left()
            if left is None or loop.time() > end:
                return left
            await asyncio.sleep(0.05)

    def _left(self) -> str | None:
        processes = descendants(os.getpid()) - self.processes
        if processes:
            return f"processes left over: {[_describe(pid) for pid in sorted(processes)]}"
        descriptors = len(os.listdir("/proc/self/fd"))
        if descriptors > self.descriptors:
            return f"{descriptors - self.descriptors} descriptors left over"
        if _mounts() > self.mounts:
            return "mounts left over"
        return None


def descendants(root: int) -> set[int]:
    """Live processes below `root`, and those in sessions (setsid) that one of them led."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    parents[int(name)] = (int(fields[1]), int(fields[3]))
    found = {root}
    grown = True
    while grown:
        more = {
            pid
            for pid, (parent, leader) in parents.items()
            if pid not in found and (parent in found or (leader in found and leader != os.getsid(0)))
        }
        found |= more
        grown = bool(more)
    return found - {root}


def _describe(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return f"{pid} {file.read().replace(bytes(1), b' ')[:80].decode(errors='replace')}"
    return str(pid)


def _mounts() -> int:
    """Mounts at places where a jail mounts; a container engine beside us mounts at its own."""
    places = ("/tmp", "/usr", "/proc", "/dev/null", "/new", "/old", "/python", "/libraries")
    with open("/proc/self/mounts") as file:
        return sum(line.split()[1].startswith(places) for line in file)
