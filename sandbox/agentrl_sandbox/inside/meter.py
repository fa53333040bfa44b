"""CPU seconds of everything that a program runs: threads, children, and those that have died.

Reads one file of a control group where the host hands one over, else a clock of the kernel that children
inherit (`perf_event_open`), else /proc. Knows nothing of limits, runs or frames. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import time

_LONGEST_GAP_S = 0.25  # a look says nothing about more than this much time before it


def cpu_of_children():
    """CPU seconds of all children that were waited for, and of those that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Meter:
    """What was seen at the last look: `last` of all that the program ran, `main` of its main thread.

    `looked` is when; set later by who knows that nothing before is of interest.
    """

    last = main = looked = 0.0

    def look(self, main):
        """CPU seconds until now; `main`: those of the main thread."""
        self.last, self.main = self.seconds(), main
        return self.last

    def seconds(self) -> float:
        """Count them."""
        raise NotImplementedError


class GroupMeter(Meter):
    """Counts by the kernel's own account of a control group: one read, exact, the dead included.

    The supervisor is in the group and takes its own part off.
    """

    exact = True

    def __init__(self, fd):
        self.fd = fd

    def seconds(self):
        """CPU seconds until now; the origin is arbitrary."""
        text = os.pread(self.fd, 256, 0)
        # Version 1: nanoseconds. Version 2: lines, of which "usage_usec N" is the first.
        used = int(text) / 1e9 if text[:1].isdigit() else int(text.split(None, 2)[1]) / 1e6
        return used - time.process_time()


class ClockMeter(Meter):
    """Counts by a clock of the kernel that runs while this process or anything below it does; exact.

    The supervisor takes its own part off.
    """

    exact = True

    def __init__(self, fd):
        self.fd = fd

    def seconds(self):
        """CPU seconds until now; the origin is arbitrary."""
        return struct.unpack("=Q", os.read(self.fd, 8))[0] / 1e9 - time.process_time()


def open_clock():
    """A descriptor of such a clock; every process forked from now on inherits it, and the dead are kept.

    -1 where the kernel gives none to ordinary users (`kernel.perf_event_paranoid` above 2), or a filter of
    system calls is in the way.
    """
    software, task_clock, inherit, exclude_kernel, close_on_exec = 1, 1, 1 << 1, 1 << 5, 8
    attributes = struct.pack("=IIQQQQQ24x", software, 72, task_clock, 0, 0, 0, inherit | exclude_kernel)
    number = {"x86_64": 298, "aarch64": 241}.get(os.uname().machine)
    if number is None:
        return -1
    return ctypes.CDLL(None).syscall(number, attributes, 0, -1, -1, close_on_exec)


class TreeMeter(Meter):
    """Counts by /proc, at every look, where nothing else does.

    Live processes are exact. What died is counted twice, and the larger number holds: once as the kernel adds
    it to whoever waited for it, and once as it was seen at the looks before, because a program can have the
    kernel forget its children (SIGCHLD ignored). A process that lived between two looks only cannot be seen;
    but one that is seen once stands for those like it: a look that meets it counts the whole time since the
    look before, less its share of waiting for a core, which is right on average. `seconds` has to be called
    every few hundredths of a second.
    """

    exact = False

    def __init__(self, processes):
        self.processes = processes
        self.children_before = cpu_of_children()
        self.seen = {}  # (pid, start time): (its CPU seconds, what it stands for)
        self.vanished = self.reaped = self.total = 0.0
        self.looked = time.monotonic()

    def seconds(self):
        """CPU seconds since this meter was made; never less than at the call before."""
        now = time.monotonic()
        gap = min(now - self.looked, _LONGEST_GAP_S)
        self.looked = now
        live, own, reaped, seen = self.processes.usage(), 0.0, cpu_of_children() - self.children_before, {}
        share = min(1.0, (os.cpu_count() or 1) / max(1, sum(usage.running for usage in live.values())))
        for key, usage in live.items():
            own += usage.cpu
            reaped += usage.reaped
            known = self.seen.pop(key, None)
            weight = known[1] if known else gap * min(share, _got(usage)) if usage.running else 0.0
            seen[key] = (usage.cpu, weight)
        self.vanished += sum(max(cpu, weight) for cpu, weight in self.seen.values())
        self.reaped = max(self.reaped, reaped)
        self.seen = seen
        self.total = max(self.total, own + max(self.reaped, self.vanished))
        return self.total


def _got(usage):
    """Share of the time since its birth that a process had a core; 1 as long as nothing is known of it."""
    wanted = usage.cpu + usage.waited
    return usage.cpu / wanted if wanted > 0.0 else 1.0
