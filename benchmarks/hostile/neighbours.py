"""Programs that do something to others: the host's processes, files and quotas, and the sessions beside them."""

from agentrl_sandbox.result import Status

from .case import case

_LIBC = """
import ctypes, os, resource, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == 'aarch64'
def call(x86, aarch64, *arguments):
    number = aarch64 if arm else x86
    return -1 if number is None else libc.syscall(number, *arguments)
"""

CASES = (
    case(
        401,
        "limits of others",
        _LIBC
        + "for which in range(16):\n    try:\n        resource.prlimit(@PID@, which, (1, 1)); print('ESCAPED', which)\n    except OSError: pass",
        Status.OK,
    ),
    case(
        402,
        "priority and processors of others",
        _LIBC
        + "for who in (@PID@, os.getppid()):\n    for what in (lambda: os.setpriority(os.PRIO_PROCESS, who, 19), lambda: os.setpriority(os.PRIO_PGRP, who, 19), lambda: os.sched_setaffinity(who, {0})):\n"
        "        try: what(); print('ESCAPED') if who != os.getpid() else None\n        except OSError: pass\n    if call(251, 30, 1, who, 3 << 13) == 0: print('ESCAPED ioprio')\n"
        "try: os.setpriority(os.PRIO_USER, os.getuid(), 19); print('ESCAPED user')\nexcept OSError: pass",
        Status.OK,
    ),
    case(
        403,
        "queues, segments and semaphores by number",
        _LIBC
        + "buf = ctypes.create_string_buffer(1024)\nfor n in range(400):\n    if call(70, 188, n, buf, 500, 0, 0o4000) >= 0: print('ESCAPED read', n)\n    if call(71, 187, n, 2, buf) == 0: print('ESCAPED seen', n)\n"
        "    if call(31, 195, n, 2, buf) == 0: print('ESCAPED seen', n)\n    if call(66, 191, n, 0, 0, 0) == 0: print('ESCAPED removed', n)\n"
        "for made in (call(68, 186, 0x7777, 0o1600), call(29, 194, 0x7777, 4096, 0o1600), call(64, 190, 0x7777, 1, 0o1600)):\n    if made >= 0: print('ESCAPED made', made)",
        Status.OK,
    ),
    case(
        404,
        "modes, times, owners and attributes of the host's files",
        _LIBC
        + "path = '@SECRET_PATH@'\nfor what in (lambda p: os.chmod(p, 0), lambda p: os.utime(p, (1, 1)), lambda p: os.chown(p, os.getuid(), os.getgid()), lambda p: os.setxattr(p, 'user.x', b'y')):\n"
        "    for p in (path, os.path.dirname(path)):\n        try: what(p); print('ESCAPED', p)\n        except OSError: pass",
        Status.OK,
    ),
    case(
        405,
        "the room of all rooms",
        "import os\ntop = os.path.dirname(os.path.dirname(os.getcwd()))\nif top != '/':\n    try: os.chmod(top, 0); print('ESCAPED')\n    except OSError: pass",
        Status.OK,
    ),
    case(
        406,
        "letters without a stamp",
        _LIBC
        + "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\nfor where in ('@ABSTRACT@', '/dev/log', '/run/systemd/notify'):\n    for what in (lambda: a.sendto(b'x', where), lambda: a.connect(where), lambda: a.sendmsg([b'x'], [], 0, where)):\n"
        "        try: what(); print('ESCAPED', where)\n        except OSError: pass",
        Status.OK,
    ),
    case(
        407,
        "signals by other doors",
        _LIBC
        + "info = ctypes.create_string_buffer(128); info[0:12] = struct.pack('iii', 15, 0, -1)\nif call(129, 138, @PID@, 15, info) == 0: print('ESCAPED queue')\nif call(297, 240, @PID@, @PID@, 15, info) == 0: print('ESCAPED thread')\n"
        "try:\n    fd = os.pidfd_open(@PID@); signal.pidfd_send_signal(fd, 15); print('ESCAPED pidfd')\nexcept OSError: pass\n"
        "import fcntl\na, b = socket.socketpair()\ntry:\n    fcntl.fcntl(a, fcntl.F_SETOWN, @PID@); fcntl.fcntl(a, fcntl.F_SETSIG, 15); fcntl.fcntl(a, fcntl.F_SETFL, fcntl.F_GETFL | os.O_ASYNC | os.O_NONBLOCK); b.send(b'x')\nexcept OSError: pass",
        Status.OK,
    ),
    case(
        408,
        "watches on shared files",
        _LIBC
        + "fd = libc.inotify_init1(0o4000)\nfor p in (b'/usr/bin', b'/usr/lib', b'.'):\n    if fd >= 0 and libc.inotify_add_watch(fd, p, 0x20) >= 0: print('ESCAPED', p)\n"
        "import fcntl\ntry: fcntl.fcntl(os.open('/usr/bin', 0), fcntl.F_NOTIFY, 1); print('ESCAPED dnotify')\nexcept OSError: pass",
        Status.OK,
    ),
    case(
        409,
        "all watchers that a user may have",
        _LIBC
        + "n = 0\nwhile libc.inotify_init1(0) >= 0: n += 1\nprint('ESCAPED', n) if n > 16 and os.getuid() in (1000, 65534) else print(n)",
        Status.OK,
    ),
    case(
        410,
        "one that is never the same",
        "import os, time\nend = time.time() + 20\nif os.fork() == 0:\n    for fd in range(3): os.close(fd)\n    while time.time() < end:\n        try:\n            if os.fork(): os._exit(0)\n        except OSError: time.sleep(0.0005)\n    os._exit(0)\nprint('gone')",
        Status.OK,
    ),
    case(
        411,
        "a herd of them",
        "import os, time\nend = time.time() + 20\nfor _ in range(4):\n    if os.fork() == 0:\n        while time.time() < end:\n            try:\n                if os.fork(): os._exit(0)\n            except OSError: pass\n        os._exit(0)\nprint('gone')",
        Status.OK,
    ),
    case(
        412,
        "leases on files of others",
        "import fcntl, os\nfor p in ('@SECRET_PATH@', '/usr/bin/python3', os.__file__):\n    try: fcntl.fcntl(os.open(p, os.O_RDONLY), 1024, fcntl.F_RDLCK); print('ESCAPED', p)\n    except OSError: pass",
        Status.OK,
    ),
    case(
        413,
        "names of the host",
        "import os, re\nfor name in ('mountinfo', 'mounts', 'cgroup', 'cpuset', 'maps'):\n    try: text = open(f'/proc/self/{name}').read()\n    except OSError: continue\n"
        "    for line in text.splitlines():\n        if re.search(r'pyenv|/root|/home/|/var/cache|/opt|agentrl-|process_api', line): print('ESCAPED', name, line)",
        Status.OK,
        tags=frozenset({"jail"}),
    ),
    case(
        414,
        "death of the parent before the kill",
        "import ctypes, os, time\nlibc = ctypes.CDLL(None)\nif os.fork() == 0:\n    libc.prctl(1, 0, 0, 0, 0)\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)\nos._exit(0)",
        Status.EXITED,
        alive=False,
    ),
    case(
        415,
        "all pages that a user may have in pipes",
        "import os, time\nready = []\nfor _ in range(20):\n    r, w = os.pipe(); ready.append(r)\n    try: pid = os.fork()\n    except OSError: os.close(w); break\n    if pid == 0:\n        kept = []\n        try:\n"
        "            while True: kept.append(os.pipe())\n        except OSError: pass\n        os.write(w, b'x'); time.sleep(1000)\n    os.close(w)\nprint([os.read(r, 1) for r in ready].count(b'x') > 0)",
        Status.OK,
        time_s=4,
    ),
    case(
        416,
        "all descriptors that a user may have under way",
        "import socket\nkept = []\ntry:\n    while True:\n        a, b = socket.socketpair(); kept += [a, b]\n        for _ in range(5): socket.send_fds(a, [b'x'], [0] * 50)\nexcept OSError as error: print(type(error).__name__)",
        Status.OK,
        time_s=4,
    ),
)
