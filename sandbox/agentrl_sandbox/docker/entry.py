"""What runs in a container: warms libraries, then becomes the supervisor of one session.

Sent over the attached socket after the modules of `inside`; standard library only, imports nothing else of
the package and knows nothing of Docker but the files of its own control group. It adds one thing to the
supervisor: when the kernel's memory limit killed the program, it says so, because a process killed for memory
looks like any killed process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inside import frames, generators, interpreter, seccomp, supervisor
    from . import cgroup
else:
    import cgroup
    import frames
    import generators
    import interpreter
    import seccomp
    import supervisor


class ContainerSupervisor(supervisor.Supervisor):
    """A supervisor that tells death by the memory limit from other deaths."""

    def _finish(self, said, alive):
        run: Any = self.run
        if run is not None and not alive and run.cause is None and cgroup.oom_kills():
            run.cause = "memory"
        super()._finish(said, alive)


def guard_supervisor():
    """Called in the interpreter, a child of the supervisor, before a program runs."""
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: the program may see its own /proc
    machine = os.uname().machine
    if machine in ("x86_64", "aarch64"):
        seccomp.install(seccomp.build_guard(machine, (1, os.getppid())))


def warm(libraries):
    """Imports `libraries` so that the interpreter, a fork of this process, has them at once."""
    missing = []
    for name in libraries:
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    return missing


def become_supervisor(libraries, cores):
    """Moves the protocol off stdin and stdout, warms up, and serves one session.

    This is process 1 of the container: orphans become its children (`Supervisor` reaps all it gets), and
    its end is the end of every other process.

    `cores`: what the container may use. The machine may have many more, and a supervisor that believed in
    those would charge a crowd of processes too little.
    """
    import fcntl

    host_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    host_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    # PR_SET_DUMPABLE: memory and environment of the supervisor are closed to the program.
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    os.cpu_count = lambda: cores
    missing = warm(libraries)
    interpreter.Furnishing()
    generators.find()
    version = ".".join(map(str, sys.version_info[:3]))
    frames.send_frame(host_out, {"kind": "warm", "missing": missing, "python": version})
    ContainerSupervisor(host_in, host_out, guard_supervisor, cgroup.open_usage()).serve()
    os._exit(0)
