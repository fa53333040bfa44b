"""What a session has: its processes with their CPU time, waits, memory and files without a name.

Reads /proc and directories; knows nothing of runs, limits of time, or frames. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import time

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


def group_of(pid):
    """Process group; None for a process that has gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return None


class Directories:
    """Directories of /proc, each looked up once and held as long as its process is there.

    Who looks up a process that has just died takes its entry apart, and spins in the kernel until whoever is
    at that already has finished: the dead process itself, which may wait for a core for long. Names below a
    directory that is held are found without a look at the directory.
    """

    def __init__(self):
        self.held = {}

    def find(self, path):
        """Descriptor of a directory such as `17/task`."""
        if path not in self.held:
            above, _, name = path.rpartition("/")
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self.held[path] = os.open(name or "/proc", flags, dir_fd=self.find(above) if name else None)
        return self.held[path]

    def list(self, path):
        """Names in a directory; none when its process has gone."""
        try:
            return os.listdir(self.find(path))
        except OSError as error:
            self._give_up(path, error)
            return []

    def read(self, path, whole=False):
        """A file, of at most 4096 bytes unless `whole`. Raises OSError when its process has gone."""
        where, _, name = path.rpartition("/")
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.find(where))
        except OSError as error:
            self._give_up(where, error)
            raise
        try:
            data = more = os.read(fd, 4096)
            while whole and more:
                more = os.read(fd, 1 << 16)
                data += more
            return data
        finally:
            os.close(fd)

    def keep(self, pids):
        """Give back the directories of all processes but these."""
        wanted = {"", *map(str, pids)}
        for path in [path for path in self.held if path.partition("/")[0] not in wanted]:
            os.close(self.held.pop(path))

    def close(self):
        """Give back all of them."""
        for fd in self.held.values():
            os.close(fd)
        self.held.clear()

    def _give_up(self, path, error):
        """A directory may be that of an older process of the same number; and descriptors are not endless."""
        if error.errno == errno.EMFILE:
            return self.close()
        for held in [held for held in self.held if f"{held}/".startswith(f"{path}/") and path]:
            os.close(self.held.pop(held))
        return None


def be_served_soon(soon):
    """Ask the scheduler for short turns, which come early: who watches a crowd must not queue behind it.

    Or for turns of the usual length again, which cost less: short ones end in the middle of a small task. Of
    Linux 6.12; an older kernel refuses or does nothing. Children do not inherit it.
    """
    number = 314 if os.uname().machine == "x86_64" else 274
    try:
        niceness = os.nice(0)
    except OSError:  # a container's filter may forbid to ask
        niceness = 0
    size, reset_on_fork, turn_ns = 48, 1, 100_000 if soon else 0
    attributes = struct.pack("=IIQiIQQQ", size, 0, reset_on_fork, niceness, 0, turn_ns, 0, 0)
    _libc.syscall(number, 0, attributes, 0)


class Usage:
    """What one process has used so far, by /proc."""

    __slots__ = ("cpu", "reaped", "running", "threads", "waited")

    def __init__(self, cpu, waited, reaped, running, threads):
        self.cpu, self.waited, self.reaped, self.running, self.threads = cpu, waited, reaped, running, threads


class Processes:
    """The processes of the session as /proc shows them."""

    def __init__(self, child, alone):
        self.child = child
        self.alone = alone
        self.me = os.getpid()
        self.proc = Directories()
        self.base_memory, self.base_private = self._memory(child)
        self.tree = not alone and os.path.exists(f"/proc/self/task/{self.me}/children")
        try:
            self.fd = os.open(f"/proc/{child}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self.schedstat = len(os.pread(self.fd, 100, 0).split()) == 3
        except OSError:
            self.fd, self.schedstat = -1, False

    def close(self):
        """Give back the descriptors."""
        self.proc.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pids(self):
        """Process ids of the session, the supervisor apart."""
        found = self._below() if self.tree else self._listed()
        self.proc.keep((*found, self.me))
        return found

    def _listed(self):
        found = [int(name) for name in self.proc.list("") if name.isdigit()]
        if self.alone:
            return [pid for pid in found if pid not in (1, self.me)]
        return [pid for pid in found if group_of(pid) == self.child]

    def _below(self):
        """Every process below the supervisor, which inherits the orphans; the host has too many to ask."""
        found, rest = set(), [self.me]
        while rest:
            for child in self._children(rest.pop()):
                if child not in found:
                    found.add(child)
                    rest.append(child)
        return sorted(found)

    def _children(self, pid):
        children = []
        for task in self.proc.list(f"{pid}/task"):
            with contextlib.suppress(OSError):  # it has gone
                children += map(int, self.proc.read(f"{pid}/task/{task}/children", whole=True).split())
        return children

    def quick(self):
        """`(cpu seconds, wait seconds)` of the interpreter's main thread; one system call."""
        if self.schedstat:
            try:
                ran, waited, _ = os.pread(self.fd, 100, 0).split()
                return int(ran) / 1e9, int(waited) / 1e9
            except (OSError, ValueError):
                return 0.0, 0.0
        stat = self._stat(self.child)
        return (sum(map(int, stat[11:15])) / _TICKS if len(stat) > 15 else 0.0), 0.0

    def booked(self):
        """What the kernel has booked for the interpreter's main thread; it changes whenever that runs."""
        try:
            return os.pread(self.fd, 100, 0)
        except OSError:
            return b""

    def wants_to_run(self):
        """True while the interpreter's main thread runs or stands in the run queue."""
        return self._stat(self.child)[:1] == ["R"]

    def usage(self):
        """`{(pid, start time): Usage}` of every process there is."""
        found = {}
        for pid in self.pids():
            stat = self._stat(pid)
            if len(stat) < 20:
                continue
            threads = int(stat[17])
            cpu = (int(stat[11]) + int(stat[12])) / _TICKS  # in hundredths, but with the threads that ended
            waited = 0.0
            if self.schedstat:
                tasks = self._tasks(pid, threads)
                cpu, waited = max(cpu, sum(ran for ran, _ in tasks)), sum(wait for _, wait in tasks)
            reaped = (int(stat[13]) + int(stat[14])) / _TICKS
            found[pid, stat[19]] = Usage(cpu, waited, reaped, stat[0] == "R", threads)
        return found

    def waits(self):
        """Seconds that each of the session's threads has stood in the run queue."""
        return [wait for pid in self.pids() for _, wait in self._tasks(pid, 2)]

    def _tasks(self, pid, threads):
        """`(cpu, wait)` seconds of the threads of a process, of its main one only if it has no other."""
        found = []
        for name in self.proc.list(f"{pid}/task") if threads > 1 else [str(pid)]:
            try:
                ran, waited, _ = self.proc.read(f"{pid}/task/{name}/schedstat").split()
            except (OSError, ValueError):
                continue
            found.append((int(ran) / 1e9, int(waited) / 1e9))
        return found

    def at_rest(self):
        """True when nothing but the interpreter's waiting main thread is left."""
        usage = self.usage()
        return len(usage) <= 1 and all(one.threads <= 1 for one in usage.values())

    def sleeping(self):
        """True when no process of the session wants to run."""
        return all(self._stat(pid)[:1] not in (["R"], ["D"]) for pid in self.pids())

    def memory(self, enough):
        """Bytes of memory that the program has taken, shared mappings among them.

        Pages that several processes share by a fork are counted once. That takes long to find out, and the
        plain sum is never less: it will do as long as it is not more than `enough`.
        """
        pids = self.pids()
        taken = sum(self._memory(pid)[0] for pid in pids) - self.base_memory
        if taken > enough:
            taken = sum(self._proportional(pid) for pid in pids) - self.base_private
        return max(0, taken)

    def sockets(self):
        """How many sockets the program holds: their buffers are in nobody's memory."""
        return sum(1 for pid in self.pids() for link in self._links(pid) if link.startswith("socket:"))

    def nameless(self, device):
        """Bytes of the files on `device` that have no name any more but are open or mapped."""
        found = {}
        for pid in self.pids():
            for fd in self.proc.list(f"{pid}/fd"):
                try:
                    stat = os.stat(fd, dir_fd=self.proc.find(f"{pid}/fd"))
                except OSError:
                    continue
                if stat.st_nlink == 0 and stat.st_dev == device:
                    found[stat.st_ino] = stat.st_blocks * 512
            self._add_mapped(pid, device, found)
        return sum(found.values())

    def _add_mapped(self, pid, device, found):
        """Files that are mapped but no longer open count by the length of the mapping."""
        try:
            lines = self.proc.read(f"{pid}/maps", whole=True).splitlines()
        except OSError:
            return
        for line in lines:
            if line.endswith(b"(deleted)"):
                where, _, _, dev, inode, _ = line.split(None, 5)
                major, minor = (int(part, 16) for part in dev.split(b":"))
                if os.makedev(major, minor) == device:
                    start, end = (int(part, 16) for part in where.split(b"-"))
                    found.setdefault(int(inode), end - start)

    def _links(self, pid):
        for fd in self.proc.list(f"{pid}/fd"):
            try:
                yield os.readlink(fd, dir_fd=self.proc.find(f"{pid}/fd"))
            except OSError:
                continue

    def kill_others(self):
        """Kill all but the interpreter; False when that cannot be done."""
        for _ in range(5):
            # Stop all in one call first: a crowd that forks while it is looked for is never seen whole.
            self._signal_all(signal.SIGSTOP)
            others = self._others()
            for pid in others:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGCONT)
            if not others:
                return True
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
            return self.proc.read(f"{pid}/stat").rpartition(b")")[2].decode().split()
        except OSError:
            return []

    def _memory(self, pid):
        """Bytes that are resident, and how many of them are neither files nor shared."""
        try:
            resident, shared = (int(pages) * _PAGE for pages in self.proc.read(f"{pid}/statm").split()[1:3])
        except (OSError, ValueError):
            return 0, 0
        return resident, resident - shared

    def _proportional(self, pid):
        """Anonymous and shared memory, each page divided by the number of processes that have it."""
        try:
            lines = self.proc.read(f"{pid}/smaps_rollup").splitlines()
            pss = {key: int(rest[0]) << 10 for key, *rest in (line.split() for line in lines[1:])}
            return pss[b"Pss_Anon:"] + pss[b"Pss_Shmem:"] + pss.get(b"SwapPss:", 0)
        except (OSError, ValueError, KeyError, IndexError):
            return self._memory(pid)[0]  # it closed itself to us, or the kernel is older than 5.9
