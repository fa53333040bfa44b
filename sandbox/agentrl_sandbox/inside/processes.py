"""What a session has: its processes with their CPU time, waits and memory, and the files of its room.

Reads /proc and directories; knows nothing of runs, limits of time, or frames. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_RLIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def read_small(path):
    """A small file of /proc in three system calls: a supervisor among its program's crowd has little time."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def group_of(pid):
    """Process group; None for a process that has gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return None


class Processes:
    """The processes of the session as /proc shows them: their CPU time, waits and memory."""

    def __init__(self, child, alone):
        self.child = child
        self.alone = alone
        self.me = os.getpid()
        self.waits = {}
        self.base_memory = self._memory(child)
        try:
            self.fd = os.open(f"/proc/{child}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self.schedstat = len(os.pread(self.fd, 100, 0).split()) == 3
        except OSError:
            self.fd, self.schedstat = -1, False

    def pids(self):
        """Process ids of the session, the supervisor apart; empty where /proc is not to be had."""
        try:
            found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        except OSError:
            return [self.child]
        if self.alone:
            return [pid for pid in found if pid not in (1, self.me)]
        return [pid for pid in found if group_of(pid) == self.child]

    def quick(self):
        """`(cpu seconds, wait seconds)` of the interpreter's main thread; one system call."""
        if self.schedstat:
            try:
                ran, waited, _ = os.pread(self.fd, 100, 0).split()
                return int(ran) / 1e9, int(waited) / 1e9
            except (OSError, ValueError):
                return 0.0, 0.0
        return self._cpu(self.child), 0.0

    def booked(self):
        """What the kernel has booked for the interpreter's main thread; it changes whenever that runs."""
        try:
            return os.pread(self.fd, 100, 0)
        except OSError:
            return b""

    def wants_to_run(self):
        """True while the interpreter's main thread runs or stands in the run queue."""
        return self._stat(self.child)[:1] == ["R"]

    def full(self):
        """`(cpu seconds of all, {pid: wait seconds})`."""
        total, waits = self._cpu(self.child), {}
        for pid in self.pids():
            try:
                ran, waited, _ = read_small(f"/proc/{pid}/schedstat").split()
            except (OSError, ValueError):
                continue
            waits[pid] = int(waited) / 1e9
            if pid != self.child:
                total += int(ran) / 1e9
        return total, waits

    def memory(self):
        """Bytes that the processes do not share with the interpreter as it was at its start."""
        return sum(max(0, self._memory(pid) - self.base_memory) for pid in self.pids())

    def sleeping(self):
        """True when no process of the session wants to run."""
        return all(self._stat(pid)[:1] not in (["R"], ["D"]) for pid in self.pids())

    def kill_others(self):
        """Kill all but the interpreter; False when that cannot be done."""
        for _ in range(5):
            if not self._others():
                return True
            # Stop all in one call first: a crowd that forks while it is killed one by one never ends.
            self._signal_all(signal.SIGSTOP)
            for pid in self._others():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGCONT)
            time.sleep(0.002)
        return False

    def _others(self):
        return [pid for pid in self.pids() if pid != self.child and self._stat(pid)[:1] not in ([], ["Z"])]

    def _signal_all(self, number):
        with contextlib.suppress(OSError):
            if self.alone:
                os.kill(-1, number)
            else:
                os.killpg(self.child, number)

    def kill(self):
        """Kill all of them."""
        self._signal_all(signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGKILL)

    def _stat(self, pid):
        """Fields of /proc/PID/stat from the state on."""
        try:
            return read_small(f"/proc/{pid}/stat").rpartition(b")")[2].decode().split()
        except OSError:
            return []

    def _cpu(self, pid):
        stat = self._stat(pid)
        return sum(map(int, stat[11:15])) / _TICKS if len(stat) > 15 else 0.0

    def _memory(self, pid):
        try:
            _, resident, shared, *_ = read_small(f"/proc/{pid}/statm").split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE


def exceeds(directory, limits):
    """True when the files below `directory` are more, or larger, than the limits."""
    count = size = 0
    for path, directories, names in os.walk(directory):
        count += len(directories) + len(names)
        for name in names[:20000]:
            try:
                size += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
        if count > limits["files"] or size > limits["file_mb"] << 20:
            return True
    return False


def describe_room(directory):
    """What a program could change and leave: its directory and those beside it, and this process's limits.

    Nothing can be put into a directory, taken out of it or set on it without a change of its ctime, which no
    program can set; contents and mode are compared too, for clocks that tick slowly.
    """
    parent, found = os.path.dirname(directory), []
    try:
        for path in (parent, *(os.path.join(parent, name) for name in sorted(os.listdir(parent)))):
            stat = os.lstat(path)
            attributes = os.listxattr(path, follow_symlinks=False)
            found.append(
                (path, os.listdir(path), stat.st_mode, stat.st_ctime_ns, stat.st_mtime_ns, attributes)
            )
    except OSError as error:
        return error  # equal to nothing but itself
    limits = [resource.getrlimit(number) for number in _RLIMITS]
    return found, limits, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
