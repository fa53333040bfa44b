"""Builds the room that sessions are forked in, then turns into the zygote. Standard library only.

Run by path, with the control socket as descriptor 3. With namespaces: a private root (read-only binds at
neutral paths, so that no path of the host is seen), a network without interfaces, a pid namespace whose death
is the death of every session, and no privileges left. Knows nothing of sessions or programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys

CONTROL = 3
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_SETUID = 7
_SOURCES = (
    "local/zygote.py", "local/landlock.py", "inside/seccomp.py",
    "inside/frames.py", "inside/processes.py", "inside/room.py", "inside/meter.py", "inside/generators.py",
    "inside/cells.py", "inside/notebook.py", "inside/upkeep.py", "inside/interpreter.py",
    "inside/supervisor.py",
)  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def check(result, what):
    """Raise OSError, saying what was tried, when a C call failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def mount(source, target, kind=None, flags=0, data=None):
    """mount(2)."""
    encode = lambda text: None if text is None else os.fsencode(text)  # noqa: E731
    result = _libc.mount(encode(source), encode(target), encode(kind), flags, encode(data))
    check(result, f"mount {kind or source} at {target}")


def write_file(path, text):
    """Write a small file."""
    with open(path, "w") as file:
        file.write(text)


def map_user(inside, uid, gid):
    """Map this process's user and group into its new user namespace."""
    write_file("/proc/self/setgroups", "deny")
    write_file("/proc/self/uid_map", f"{inside} {uid} 1")
    write_file("/proc/self/gid_map", f"{inside} {gid} 1")


def enter_namespaces():
    """Leave the host's namespaces; by way of a user namespace unless this process may do without."""
    uid, gid = os.geteuid(), os.getegid()
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    if uid == 0 and _libc.unshare(flags) == 0:
        return True
    check(_libc.unshare(flags | _NEWUSER), "unshare user namespace")
    map_user(1000, uid, gid)
    return False


def bind(source, target):
    """Show `source` at `target`, making the place for it."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_file(target, "")
    mount(source, target, None, _BIND | _REC)


def show(source, target):
    """Show the directory `source` at `target` by a file system of its own, else by a bind.

    A bind tells every program where the directory lies on the host (mountinfo), and shares its locks and
    watches with all who use it there; an overlay without an upper layer does neither.
    """
    os.makedirs(target, exist_ok=True)
    back = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.chdir(source)
        mount("overlay", target, "overlay", _RDONLY | _NOSUID | _NODEV, "lowerdir=.:/new/empty")
    except OSError:
        bind(source, target)
    finally:
        os.fchdir(back)
        os.close(back)


def build_root(config, sources):
    """Build the root below /tmp; returns the command that starts the interpreter in it."""
    mount("none", "/", None, _REC | _PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=0755,size=4m")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    mount("/tmp/new", "/tmp/new", None, _BIND | _REC)
    check(_libc.syscall(_pivot_number(), b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    os.makedirs("/new/empty")
    for name in ("proc", "tmp", "driver", "etc", "dev", "libraries"):
        os.mkdir(f"/new/{name}")
    bind("/old/usr", "/new/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/old/{name}"):
            os.symlink(os.readlink(f"/old/{name}"), f"/new/{name}")
        elif os.path.isdir(f"/old/{name}"):
            bind(f"/old/{name}", f"/new/{name}")
    for name in ("ld.so.cache", "alternatives"):
        if os.path.exists(f"/old/etc/{name}"):
            bind(f"/old/etc/{name}", f"/new/etc/{name}")
    write_file("/new/etc/passwd", "program:x:1000:1000::/tmp/work:/bin/sh\n")
    write_file("/new/etc/group", "program:x:1000:\n")
    os.mkdir("/new/etc/fonts")
    fonts = "<dir>/usr/share/fonts</dir><cachedir>/tmp/fonts</cachedir>"
    write_file("/new/etc/fonts/fonts.conf", f"<fontconfig>{fonts}</fontconfig>\n")
    write_file("/new/etc/hosts", "127.0.0.1 localhost\n")
    write_file("/new/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
    for name in ("null", "zero", "full", "random", "urandom"):
        bind(f"/old/dev/{name}", f"/new/dev/{name}")
    os.symlink("/tmp/shm", "/new/dev/shm")
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"/new/dev/{name}")
    for name, text in sources.items():
        write_file(f"/new/driver/{os.path.basename(name)}", text)
    for index, path in enumerate(config["libraries"]):
        show("/old" + path, f"/new/libraries/{index}")
    python = place_python(config)
    hide_packages(config)
    make_read_only()
    return python


def place_python(config):
    """Where the interpreter is found inside; one outside of /usr is bound to /python."""
    if config["prefix"] == "/usr":
        return config["python"]
    inside = os.path.relpath(config["python"], config["prefix"])
    if inside.startswith(".."):
        bind("/old" + config["prefix"] + "/lib", "/new/python/lib")
        bind("/old" + config["python"], "/new/python/bin/python3")
        return "/python/bin/python3"
    show("/old" + config["prefix"], "/home")
    bind("/home/lib", "/new/python/lib")
    bind("/home/" + inside, "/new/python/bin/python3")
    return "/python/bin/python3"


def hide_packages(config):
    """Cover the places where packages of the host, the trainer's among them, may lie."""
    places = ["/new/usr/local"]
    for library in ("/new/usr/lib", "/new/usr/lib64", "/new/python/lib"):
        if not os.path.isdir(library):
            continue
        for name in os.listdir(library):
            if name.startswith("python"):
                places += [f"{library}/{name}/{kind}-packages" for kind in ("site", "dist")]
    for place in places:
        if os.path.isdir(place):
            mount("/new/empty", place, None, _BIND)


def make_read_only():
    """The whole new root, at once where the kernel can (5.12), else mount by mount."""
    attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID, 0, 0, 0)
    if _libc.syscall(442, -100, b"/new", 0x8000, ctypes.byref(attributes), 32) == 0:
        return
    with open("/old/proc/self/mountinfo", errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    names = {"nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC, "noatime": 1024, "relatime": 1 << 21}
    for fields in lines:
        if fields[4] == "/new" or fields[4].startswith("/new/"):
            flags = _RDONLY | _NOSUID | _REMOUNT | _BIND
            for option in fields[5].split(","):
                flags |= names.get(option, 0)
            mount("none", fields[4], None, flags)


def _pivot_number():
    return 155 if os.uname().machine == "x86_64" else 41


def move_in(user, ask_for_users):
    """Make /new the root and drop the privileges that are left, but that of giving each session a user.

    What the kernel counts by user (pages of pipes, descriptors under way, watches of epoll) is a session's
    own then. `ask_for_users()` has somebody outside map them.
    """
    mount("proc", "/new/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    mount("tmpfs", "/new/tmp", "tmpfs", _NOSUID | _NODEV, "mode=1777,size=64m,nr_inodes=4096")
    os.chdir("/new")
    check(_libc.syscall(_pivot_number(), b".", b"."), "pivot_root")
    check(_libc.umount2(b".", _DETACH), "leave the old root")
    os.chdir("/")
    if user is not None:
        os.setgroups([])
        check(_libc.unshare(_NEWUSER), "unshare user namespace")
        ask_for_users()
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        keep_capability(_SETUID)
        _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else /proc/self stays root's


def keep_capability(number):
    """This one of the user namespace and no other, beyond the next execve too."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(*[1 << number] * 3)
    check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
    check(_libc.prctl(47, 2, number, 0, 0), "keep a capability")  # PR_CAP_AMBIENT, RAISE


def map_users(proc, child, config):
    """From outside: the users that may be in the child's user namespace; its own alone where we may not."""
    own, (first, count) = config["uid"], config["session_uids"]
    for name, more in (("uid_map", f"\n{first} {first} {count}"), ("gid_map", "")):
        fd = os.open(f"{child}/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, f"{own} {own} 1{more}".encode())
        except OSError:
            os.write(fd, f"{own} {own} 1".encode())
        finally:
            os.close(fd)


def clean_environment(config, inside):
    """What the interpreter is started with: nothing of the trainer's. Equal hashes in all sessions."""
    libraries = "/python/lib" if inside and config["prefix"] != "/usr" else config["prefix"] + "/lib"
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "2"}
    environment["MPLBACKEND"] = "Agg"
    if config["prefix"] != "/usr":
        environment["LD_LIBRARY_PATH"] = libraries
    for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR"):
        environment[f"{name}_NUM_THREADS"] = "1"
    # Libraries write caches when they are imported. What they keep of them in memory, every session has.
    cache = "/tmp" if inside else config["cache"]
    for name in ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment[name] = cache
    return environment


def start_zygote(python, script, environment):
    """Become the zygote; the control socket goes along."""
    os.set_inheritable(CONTROL, True)
    os.execve(python, [python, "-P", "-s", "-S", script], environment)


def main():
    """Read the configuration from the control socket, build, fork the zygote, wait for its end."""
    control = socket.socket(fileno=os.dup(CONTROL))
    config = json.loads(control.recv(65536))
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        if not config["namespaces"]:
            os.chdir("/")
            start_zygote(
                config["python"], os.path.join(here, "local", "zygote.py"), clean_environment(config, False)
            )
        sources = {}
        for name in _SOURCES:
            with open(os.path.join(here, name)) as file:
                sources[name] = file.read()
        as_root = enter_namespaces()
        python = build_root(config, sources)
        proc, (ours, theirs) = os.open("/old/proc", os.O_RDONLY | os.O_DIRECTORY), socket.socketpair()
        # The child is pid 1 of the new pid namespace: when it dies, the kernel kills all sessions.
        child = os.fork()
        if child == 0:
            _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            os.close(proc)
            ours.close()
            move_in(config["uid"] if as_root else None, lambda: theirs.send(b"?") and theirs.recv(1))
            theirs.close()
            _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # a change of user clears it
            start_zygote(python, "/driver/zygote.py", clean_environment(config, True))
        theirs.close()
        if ours.recv(1):
            map_users(proc, child, config)
            ours.send(b"!")
        ours.close()
        os.close(proc)
    except BaseException as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        control.settimeout(1.0)
        with contextlib.suppress(OSError):
            control.recv(65536)  # the zygote's packet: left unread it would take our answer along
        os._exit(1)
    control.close()
    os.close(CONTROL)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


if __name__ == "__main__":
    sys.exit(main())
