"""What a container sees of its own control group. Runs in containers; standard library only."""

from __future__ import annotations

import os

# Control groups of version 1 and 2 count what they killed in different files.
_KILL_COUNTS = (
    ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill"),
    ("/sys/fs/cgroup/memory.events", "oom_kill"),
    ("/sys/fs/cgroup/memory.events", "oom"),
)

# Where a container sees the CPU time of its own control group.
_USAGE = (
    "/sys/fs/cgroup/cpuacct/cpuacct.usage",
    "/sys/fs/cgroup/cpu,cpuacct/cpuacct.usage",
    "/sys/fs/cgroup/cpu.stat",
)


def open_usage():
    """A descriptor of the kernel's account of this container's CPU time; -1 where there is none."""
    for path in _USAGE:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return -1


def oom_kills():
    """How often the kernel has killed in this container for its memory limit; 0 where it cannot be read."""
    for path, name in _KILL_COUNTS:
        try:
            with open(path) as file:
                for line in file:
                    key, _, value = line.partition(" ")
                    if key == name and value.strip().isdigit():
                        return int(value)
        except OSError:
            continue
    return 0
