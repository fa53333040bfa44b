# ruff: noqa: ISC004
"""Programs that want more memory than they have: shared, in files without a name, in buffers of the kernel."""

from agentrl_sandbox.result import Status

from .case import case, lacks

_DEAD = (Status.OUT_OF_MEMORY, Status.KILLED, Status.ERROR, Status.TIMEOUT)
_CHILDREN = """
import ctypes, mmap, os, socket, time
def crowd(count, work):
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            try: kept = work()
            except BaseException as error: os._exit(7)
            time.sleep(3); os._exit(0)
        pids.append(pid)
    bad = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
    if bad: raise MemoryError(f'{bad} were stopped')
    print('ESCAPED: it had all that it wanted')
"""

CASES = (
    case(
        201,
        "shared mappings of four children",
        _CHILDREN
        + "def work():\n    m = mmap.mmap(-1, 190 << 20)\n    for at in range(0, 190 << 20, 4096): m[at] = 1\n    return m\ncrowd(4, work)",
        *_DEAD,
        time_s=6,
    ),
    case(
        202,
        "private mappings of six children",
        _CHILDREN
        + "def work():\n    m = mmap.mmap(-1, 120 << 20, flags=mmap.MAP_PRIVATE)\n    for at in range(0, 120 << 20, 4096): m[at] = 1\n    return m\ncrowd(6, work)",
        *_DEAD,
        time_s=6,
    ),
    case(
        203,
        "files in memory that nobody maps",
        "import os\nfds = []\nfor i in range(60):\n    fds.append(os.memfd_create('x'))\n    for _ in range(12): os.write(fds[-1], bytes(1 << 20))\nprint('ESCAPED')",
        *_DEAD,
        time_s=4,
    ),
    case(
        204,
        "the same in children",
        _CHILDREN
        + "def work():\n    fds = [os.memfd_create('x') for _ in range(10)]\n    for fd in fds: [os.write(fd, bytes(1 << 20)) for _ in range(12)]\n    return fds\ncrowd(6, work)",
        *_DEAD,
        time_s=6,
    ),
    case(
        205,
        "buffers of sockets",
        _CHILDREN
        + "def work():\n    pairs = []\n    for _ in range(55):\n        a, b = socket.socketpair(); pairs.append((a, b))\n        for s in (a, b):\n"
        "            s.setblocking(False)\n            try:\n                while True: s.send(bytes(65536))\n            except BlockingIOError: pass\n    return pairs\ncrowd(18, work)",
        *_DEAD,
        time_s=6,
    ),
    case(
        206,
        "larger buffers of sockets",
        _CHILDREN
        + "def work():\n    pairs = []\n    for _ in range(50):\n        a, b = socket.socketpair(); pairs.append((a, b))\n        for s in (a, b):\n"
        "            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22); s.setblocking(False)\n            try:\n                while True: s.send(bytes(100_000))\n            except BlockingIOError: pass\n    return pairs\ncrowd(18, work)",
        *_DEAD,
        time_s=6,
    ),
    case(
        207,
        "pipes of a megabyte",
        "import fcntl, os\nfor _ in range(50):\n    r, w = os.pipe(); size = 65536\n    try: size = fcntl.fcntl(w, 1031, 1 << 20)\n    except OSError as error: pass\n"
        "    if size > 65536: print('ESCAPED', size)\nprint('end')",
        Status.OK,
    ),
    case(
        208,
        "memory taken between two runs",
        (
            "import threading, time, mmap\nkept = []\ndef grow():\n    time.sleep(0.3)\n    for _ in range(5):\n        m = mmap.mmap(-1, 40 << 20); kept.append(m)\n        for at in range(0, 40 << 20, 4096): m[at] = 1\n"
            "def more():\n    import os\n    for _ in range(3):\n        if os.fork() == 0: grow(); time.sleep(1000)\nthreading.Thread(target=more, daemon=True).start()",
            "print('ESCAPED') if len(kept) > 100 else print('next')",
        ),
        Status.OK,
        *_DEAD,
        pause_s=2.5,
        time_s=2,
    ),
    case(
        209,
        "closed to those who look",
        _CHILDREN
        + "def work():\n    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n    m = mmap.mmap(-1, 190 << 20)\n    for at in range(0, 190 << 20, 4096): m[at] = 1\n    return m\ncrowd(4, work)",
        *_DEAD,
        time_s=6,
    ),
    case(
        210,
        "pages that are shared by a fork count once",
        "import os, time\ndata = bytearray(100 << 20)\nfor at in range(0, len(data), 4096): data[at] = 1\npids = []\n"
        "for _ in range(4):\n    pid = os.fork()\n    if pid == 0:\n        time.sleep(0.5); os._exit(sum(data[::1 << 20]) & 127)\n    pids.append(pid)\n"
        "print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))",
        Status.OK,
        time_s=6,
        alive=True,
        check=lacks("-9"),
    ),
    case(
        211,
        "files of the private shared memory",
        "for i in range(60):\n    with open(f'/dev/shm/x{i}', 'wb') as f:\n        for _ in range(12): f.write(bytes(1 << 20))\nprint('ESCAPED')",
        *_DEAD,
        time_s=4,
    ),
    case(
        212,
        "large stacks of threads",
        "import threading, time\nthreading.stack_size(64 << 20)\ndef deep(n):\n    x = bytearray(1 << 20)\n    return deep(n - 1) if n else time.sleep(1000)\n"
        "for _ in range(15): threading.Thread(target=deep, args=(60,), daemon=True).start()\ntime.sleep(2)\nprint('ESCAPED')",
        *_DEAD,
        time_s=4,
    ),
)
