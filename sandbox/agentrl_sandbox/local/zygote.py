"""The warm interpreter that sessions are forked from. Standard library only; run by path inside the jail.

Control socket (descriptor 3, sequenced packets): the first packet is the configuration; the zygote answers
`{"ready": version, "landlock": n, "failed": {library: why}}` once its libraries are warm. Then each packet
`{"uid": uid|null, "metered": bool}` with descriptors [session socket, control group files..., if metered the
file of its CPU time] is a new session. End of the socket: exit, and with it every session. Knows nothing of
programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import sysconfig

# In the jail all files lie in one directory.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "inside"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import frames
import generators
import interpreter
import landlock
import seccomp
import supervisor

del sys.path[:2]

CONTROL = 3
_HUGE = 2 << 20
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_NEWCGROUP = 0x02000000
_QUOTAS = {"max_inotify_instances": 4, "max_user_namespaces": 0}
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME = 1, 2, 4, 8, 1024
_python = ctypes.PyDLL(None, use_errno=True)
_libc = ctypes.CDLL(None, use_errno=True)

# What programs import most; a fork shares the memory and the time that the import took.
_COMMON = (
    "math", "random", "re", "json", "itertools", "functools", "collections", "fractions", "decimal", "string",
    "statistics", "datetime", "time", "heapq", "bisect", "operator", "copy", "typing", "dataclasses", "enum",
    "textwrap", "io", "contextlib", "subprocess", "linecache", "tokenize",
)  # fmt: skip


def warm(modules, exercise):
    """Import and use the libraries once; returns what could not be imported."""
    failed = {}
    for name in (*_COMMON, *modules):
        try:
            __import__(name)
        except BaseException as error:
            failed[name] = f"{type(error).__name__}: {error}"
    for name, use in (("sympy", use_sympy), ("numpy", use_numpy), ("matplotlib", use_matplotlib)):
        if name in sys.modules and exercise:
            try:
                use()
            except BaseException as error:
                failed[name] = f"{type(error).__name__} when used: {error}"
    compile("1 + 1", "<warm>", "exec")
    return failed


def use_sympy():
    """The parts that programs begin with, which fill its caches."""
    import sympy

    x = sympy.Symbol("x")
    sympy.integrate(sympy.sin(x) ** 2 * x, x)
    sympy.simplify(sympy.sin(x) ** 2 + sympy.cos(x) ** 2)
    sympy.solve(x**2 - 2 * x - 3, x)
    sympy.factor(x**4 - 1)
    sympy.sympify("x**2/3 + 1")
    for number in (sympy.Rational(1, 3), sympy.N(sympy.pi, 20), sympy.factorint(360)):
        str(number)


def use_numpy():
    """The same."""
    import numpy

    numpy.linalg.solve(numpy.eye(3), numpy.ones(3))
    repr(numpy.arange(4).reshape(2, 2).mean())
    numpy.random.seed(0)  # a part of numpy that is only imported when used


def use_matplotlib():
    """Its first picture takes a second, wants a directory to write in, and complains about fonts."""
    import io

    import matplotlib.pyplot

    matplotlib.pyplot.plot([0, 1])
    matplotlib.pyplot.savefig(io.BytesIO())
    matplotlib.pyplot.close("all")


def fork_into(flags):
    """fork(2) into new namespaces: one fork where unshare would take two."""
    _python.PyOS_BeforeFork()
    number = 56 if os.uname().machine == "x86_64" else 220
    pid = _python.syscall(number, ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0)
    if pid == 0:
        _python.PyOS_AfterFork_Child()
    else:
        _python.PyOS_AfterFork_Parent()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"clone: {os.strerror(code)}")
    return pid


def mount(source, target, kind, flags, data):
    """mount(2)."""
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {kind.decode()} at {target.decode()}: {os.strerror(code)}")


def map_ids(process, **texts):
    """Write the maps of a user namespace by one of its processes."""
    for name, text in texts.items():
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(text)


def enter_room(limits, uid, gid, mapped):
    """Inside the session's own namespaces: its user (unless `mapped` already), its files, its /proc."""
    map_ids("self", setgroups="deny", gid_map=f"1000 {gid} 1")
    if not mapped:
        map_ids("self", uid_map=f"1000 {uid} 1")
    os.setresuid(1000, 1000, 1000)
    for name, most in _QUOTAS.items():
        with contextlib.suppress(OSError), open(f"/proc/sys/user/{name}", "w") as file:
            file.write(str(most))  # what all sessions have from one user is shared out
    _libc.unshare(_NEWCGROUP)  # the names of control groups are the host's
    size = f"size={int(limits['file_mb'])}m,nr_inodes={int(limits['files'])},mode=0700".encode()
    mount(b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV | _NOATIME, size)
    os.mkdir("/tmp/work")
    os.mkdir("/tmp/shm", 0o700)
    flags = _RDONLY | _NOSUID | _NODEV | _NOEXEC
    try:
        mount(b"proc", b"/proc", b"proc", flags, b"subset=pid")
    except OSError:
        mount(b"proc", b"/proc", b"proc", flags, None)
    _libc.sethostname(b"sandbox", 7)


def drop_privileges():
    """No capabilities, none to be gained; the supervisor's memory is closed to the program."""
    for capability in range(64):
        if _libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            break
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    if _libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    _libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


class Zygote:
    """Forks sessions; see the module's docstring."""

    def __init__(self, control, config):
        self.control, self.config = control, config
        self.namespaces, self.protect = config["namespaces"], config["protect"]
        self.uid, self.gid = os.geteuid(), os.getegid()
        self.landlock = landlock.abi() if config.get("landlock", True) else 0
        self.filters = {
            uncounted: seccomp.build(
                os.uname().machine, seccomp.Surroundings(uncounted=uncounted, protected=(1,))
            )
            for uncounted in (False, True)
            if self.protect and self.namespaces
        }
        self.flags = _NEWUSER | _NEWNS | _NEWPID | _NEWIPC | _NEWUTS | (_NEWNET * bool(config["own_network"]))
        self.libraries = config["library_paths"]

    def serve(self):
        """Fork a session for every packet until the host hangs up."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, 65536, 8)
            if not data:
                os._exit(0)
            order, (told, tell) = json.loads(data), os.pipe()
            try:
                pid = fork_into(self.flags) if self.namespaces else os.fork()
            except OSError as error:
                frames.send_frame(fds[0], {"kind": "failed", "reason": str(error)})
                pid = -1
            if pid == 0:
                os.close(tell)
                self._session(fds[0], fds[1:], order, told)
            if pid > 0 and self.namespaces:
                os.write(tell, self._give_user(pid, order["uid"]))
            for fd in (*fds, told, tell):
                os.close(fd)

    def _give_user(self, pid, uid):
        """Map a user of its own into the session's namespace; `-` where there is but this process's own."""
        try:
            if uid is not None:
                map_ids(pid, uid_map=f"1000 {uid} 1")
                return b"+"
        except OSError:
            pass  # it has died, or this process may not
        return b"-"

    def _session(self, line, groups, order, told):
        try:
            os.close(CONTROL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            start, _ = frames.receive_frame(line)
            usage = groups.pop() if order["metered"] else -1
            for group in groups:
                os.write(group, b"0")
            if self.namespaces:
                enter_room(start["limits"], self.uid, self.gid, os.read(told, 1) == b"+")
                _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: the zygote's end is ours
            else:
                self._settle(order.get("uid"))
            interpreter.close_others({0, 1, 2, line} | ({usage} - {-1}))
            gc.enable()
            if self.protect:
                drop_privileges()
            announce(line)
            supervisor.Supervisor(line, line, lambda: self._confine(start), usage).serve(start)
        except BaseException as error:
            try:
                reason = f"{type(error).__name__}: {error}"
                frames.send_frame(line, {"kind": "failed", "reason": reason})
            finally:
                os._exit(1)
        os._exit(0)

    def _settle(self, uid):
        """Without namespaces: a session and a user of its own, and no orphan may get away."""
        os.setsid()
        _libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        if uid is not None and self.uid == 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        _libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG: the supervisor ends the others first

    def _confine(self, start):
        """The last step before the program: no more files than it needs, no more calls than it needs."""
        _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: the program may see its own /proc
        if not self.protect:
            return
        devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
        if self.namespaces:
            if self.landlock:
                landlock.restrict(["/"], ["/tmp"], files=devices)
            seccomp.install(self.filters[start["watch_memory"]])
            return
        _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # dies with its supervisor
        room = os.path.dirname(start["directory"])
        readable = readable_on_host([*self.libraries, self.config["cache"]])
        # An interpreter that is started by a program finds its modules by listing their directory.
        landlock.restrict(readable, [room], files=devices, listed=[sysconfig.get_path("stdlib")])
        around = seccomp.Surroundings(
            on_host=True,
            own=os.getpid(),
            signals=self.landlock < 6,
            shared_user=self.uid != 0,
            uncounted=start["watch_memory"],
            protected=(os.getppid(),),
        )
        seccomp.install(seccomp.build(os.uname().machine, around))


def readable_on_host(libraries):
    """What a program reads where the host's root is its root: the interpreter, no packages of the host."""
    paths = [
        "/usr/bin",
        "/bin",
        "/lib",
        "/lib64",
        "/usr/lib64",
        "/etc/ld.so.cache",
        "/etc/fonts",
        "/usr/share/fonts",
        sys.executable,
        *libraries,
    ]
    standard = sysconfig.get_path("stdlib")
    home = os.path.dirname(standard)
    for directory in {"/usr/lib", home, standard}:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            if not name.startswith("python") and name not in ("site-packages", "dist-packages"):
                paths.append(path)
    return [path for path in paths if path != "/lib" or not os.path.islink(path)]


def announce(line):
    """Give the host a handle on this process that no reuse of process ids can spoil."""
    with socket.socket(fileno=os.dup(line)) as sock:
        fd = os.pidfd_open(os.getpid())
        socket.send_fds(sock, [b"P"], [fd])
        os.close(fd)


def use_huge_pages():
    """Put the warm heap into large pages, which a fork copies and an exit frees 512 at a time.

    Returns the bytes that were moved. MADV_COLLAPSE is of Linux 6.1; an older kernel refuses, and nothing is
    lost but time.
    """
    moved = 0
    _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with open("/proc/self/maps", errors="surrogateescape") as file:
        regions = [line.split() for line in file]
    for fields in regions:
        if fields[1] != "rw-p" or (len(fields) > 5 and fields[5] != "[heap]"):
            continue
        start, end = (int(number, 16) for number in fields[0].split("-"))
        start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        for page in range(start, end, _HUGE):
            if _libc.madvise(page, _HUGE, 25) == 0:  # MADV_COLLAPSE
                moved += _HUGE
    return moved


def main():
    """Warm up, say so, serve."""
    control = socket.socket(fileno=CONTROL)
    config = json.loads(control.recv(65536))
    sys.dont_write_bytecode = True
    sys.path += config["library_paths"]
    failed = warm(config["warm"], config["exercise"])
    interpreter.Furnishing()
    generators.find()
    gc.collect()
    gc.disable()
    gc.freeze()
    huge = use_huge_pages()
    version = ".".join(map(str, sys.version_info[:3]))
    answer = {"ready": version, "landlock": landlock.abi(), "failed": failed, "huge_bytes": huge}
    control.send(json.dumps(answer).encode())
    Zygote(control, config).serve()


if __name__ == "__main__":
    main()
