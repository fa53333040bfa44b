"""CPU seconds of this process and everything below it, from /proc.

`time.process_time` leaves out the sandbox's interpreters and servers, which are children of children.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU seconds used so far by this process, its ended children, and its living descendants."""
    times = os.times()
    total = time.process_time() + times.children_user + times.children_system
    for fields in _descendants(os.getpid()):
        # utime, stime, cutime, cstime: fields 14 to 17 of /proc/PID/stat.
        total += sum(int(value) for value in fields[11:15]) / _TICK
    return total


def _descendants(root: int) -> list[list[bytes]]:
    children: dict[int, list[tuple[int, list[bytes]]]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            # Bytes, split after the last `)`: a process names itself, and its name may be anything.
            fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(fields[1]), []).append((int(name), fields))
        except (OSError, IndexError):
            continue  # ended meanwhile
    found: list[list[bytes]] = []
    todo = [root]
    while todo:
        for pid, fields in children.get(todo.pop(), ()):
            found.append(fields)
            todo.append(pid)
    return found
