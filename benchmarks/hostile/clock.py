"""Programs that want more time than they have: work done by others, by the dead, or while nobody looks."""

from agentrl_sandbox.result import Status

from .case import case
from .trees import DYING

_HEAD = """
import os, signal, sys, threading, time
def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""
_OVER = (Status.TIMEOUT, Status.KILLED, Status.OUT_OF_MEMORY)


def _loop(body: str, *, prologue: str = "") -> str:
    """Forks for ever: the child does `body`, the parent what follows it."""
    return f"{_HEAD}{prologue}\nwhile True:\n    try:\n        pid = os.fork()\n    except OSError:\n        time.sleep(0.001); continue\n    if pid == 0:\n        {body}\n        os._exit(0)\n"


CASES = (
    case(
        101,
        "a thread of a child works and the main thread is polite",
        _HEAD
        + "if os.fork() == 0:\n    threading.Thread(target=spin, args=(1000,)).start()\n    time.sleep(1000)\n"
        "try: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nexcept OSError: pass\ntry: os.nice(19)\nexcept OSError: pass\nspin(1000)",
        *_OVER,
    ),
    case(
        102,
        "a grandchild hands its work over",
        _HEAD
        + "r, w = os.pipe()\nif os.fork() == 0:\n    if os.fork() == 0:\n        spin(6); os.write(w, b'done'); os._exit(0)\n    os._exit(0)\n"
        "os.wait()\nprint('ESCAPED', os.read(r, 10))",
        *_OVER,
    ),
    case(
        103,
        "a chain of children each of which begets the next",
        _HEAD
        + "while True:\n    spin(0.01)\n    try:\n        if os.fork(): os._exit(0) if os.getpid() != @ME@ else time.sleep(1000)\n    except OSError: pass".replace(
            "@ME@", "first"
        ).replace("while True:", "first = os.getpid()\nwhile True:"),
        *_OVER,
    ),
    case(
        104,
        "children that nobody waits for",
        _loop("spin(0.005)", prologue="signal.signal(signal.SIGCHLD, signal.SIG_IGN)"),
        *_OVER,
    ),
    case(
        105,
        "children that are waited for at once",
        _loop("spin(0.01)") + "    os.waitpid(pid, 0)",
        *_OVER,
    ),
    case(
        106,
        "a pool that is always young",
        _loop("spin(0.01)", prologue="signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nlive = []")
        + "    live.append(pid)\n    if len(live) > 6:\n        try: os.waitpid(live.pop(0), 0)\n        except OSError: pass",
        *_OVER,
    ),
    case(
        107,
        "daemons work and the program sleeps",
        _HEAD
        + "for _ in range(4):\n    if os.fork() == 0:\n        if os.fork() == 0: spin(1000)\n        os._exit(0)\n    os.wait()\ntime.sleep(1000)",
        *_OVER,
    ),
    case(
        108,
        "six threads on all cores",
        _HEAD
        + "import hashlib\nwork = lambda: [hashlib.pbkdf2_hmac('sha256', b'x', b'y', 200_000) for _ in range(1000)]\n"
        "threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]\n[t.start() for t in threads]\n[t.join() for t in threads]",
        *_OVER,
    ),
    case(
        109,
        "shells in the background",
        _HEAD + "for _ in range(3): os.system('while :; do :; done &')\ntime.sleep(1000)",
        *_OVER,
    ),
    case(
        110,
        "ten polite spinners",
        _HEAD
        + "for _ in range(10):\n    if os.fork() == 0:\n        try: os.nice(19)\n        except OSError: pass\n        spin(1000)\ntime.sleep(1000)",
        *_OVER,
    ),
    case(
        111,
        "threads that die young",
        _HEAD + "while True:\n    t = threading.Thread(target=spin, args=(0.01,)); t.start(); t.join()",
        *_OVER,
    ),
    case(
        112,
        "children that are killed when they have worked",
        _loop("spin(1000)") + "    time.sleep(0.02)\n    os.kill(pid, 9)\n    os.waitpid(pid, 0)",
        *_OVER,
    ),
    case(
        113,
        "programs started for ever",
        _HEAD + "args = ['/bin/sh', '-c', 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done']\n"
        "if not os.path.exists('/bin/sh'): args = [sys.executable, '-c', 'for _ in range(100000): pass']\n"
        "while True:\n    os.waitpid(os.posix_spawn(args[0], args, {}), 0)",
        *_OVER,
    ),
    case(
        114,
        "deaf, with children that are too",
        _HEAD
        + "signal.signal(signal.SIGINT, signal.SIG_IGN)\nfor _ in range(5):\n    if os.fork() == 0: spin(1000)\nspin(1000)",
        *_OVER,
        alive=False,
    ),
    case(
        115,
        "stopped, while a child works",
        _HEAD + "if os.fork() == 0: spin(1000)\nos.kill(os.getpid(), signal.SIGSTOP)",
        *_OVER,
    ),
    case(
        116,
        "gone, while a child works",
        _HEAD + "if os.fork() == 0: spin(1000)\nos._exit(3)",
        Status.EXITED,
        alive=False,
    ),
    case(
        117,
        "work between two runs",
        (
            _HEAD + "threading.Thread(target=spin, args=(1000,), daemon=True).start()",
            "print('ESCAPED' if time.process_time() > 2.2 else 'next')",
        ),
        *_OVER,
        Status.OK,
        pause_s=3.0,
    ),
    case(
        118,
        "children at work between two runs",
        (
            _HEAD
            + "import mmap, struct\nshared = mmap.mmap(-1, 4096)\nfor n in range(2):\n    if os.fork() == 0:\n"
            "        while True: spin(0.02); struct.pack_into('d', shared, 8 * n, time.process_time())",
            "print('ESCAPED' if sum(struct.unpack_from('dd', shared)) > 2.2 else 'next')",
        ),
        *_OVER,
        Status.OK,
        pause_s=3.0,
    ),
    case(
        119,
        "a timer that rings between two runs",
        (
            _HEAD
            + "signal.signal(signal.SIGALRM, lambda *_: spin(1000))\nsignal.setitimer(signal.ITIMER_REAL, 0.2)",
            "print('next')",
        ),
        *_OVER,
        Status.OK,
        pause_s=1.5,
    ),
    case(120, "one call that cannot be interrupted", "sum(range(10**11))", *_OVER),
    case(
        121,
        "children that are counted by nobody because their parent has gone",
        _HEAD
        + "while True:\n    if os.fork() == 0:\n        signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n        for _ in range(3):\n"
        "            try:\n                if os.fork() == 0: spin(0.01); os._exit(0)\n            except OSError: pass\n        spin(0.01); os._exit(0)\n    os.wait()",
        *_OVER,
    ),
    case(
        122,
        "a good program whose helpers work a little",
        "from concurrent.futures import ThreadPoolExecutor\nimport os, subprocess, sys\n"
        "def help(n):\n"
        "    args = ['/bin/sh', '-c', f'echo $(({n} * 2))']\n"
        "    if not os.path.exists('/bin/sh'): args = [sys.executable, '-c', f'print({n} * 2)']\n"
        "    return int(subprocess.run(args, capture_output=True).stdout)\n"
        "with ThreadPoolExecutor(3) as pool:\n    print(sum(pool.map(help, range(6))))",
        Status.OK,
        time_s=3,
    ),
    case(123, "polite children that die slowly", DYING, *_OVER),
    case(
        124,
        "polite threads that die slowly",
        _HEAD
        + "try: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nexcept OSError: pass\ndef work():\n    try: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)\n    except OSError: pass\n    end = time.thread_time() + 0.003\n    while time.thread_time() < end: pass\n"
        "while True:\n    threads = [threading.Thread(target=work) for _ in range(5)]\n    try: [t.start() for t in threads]\n    except RuntimeError: pass\n    end = time.thread_time() + 0.01\n    while time.thread_time() < end: pass",
        *_OVER,
    ),
    case(
        125,
        "another program in its place",
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'while True: pass'])",
        *_OVER,
        Status.PROTOCOL_LOST,
        alive=False,
    ),
    case(
        126,
        "stopped and woken a hundred times a second",
        _HEAD
        + "me = os.getpid()\nif os.fork() == 0:\n    while True: os.kill(me, signal.SIGSTOP); time.sleep(0.005); os.kill(me, signal.SIGCONT); time.sleep(0.005)\nspin(1000)",
        *_OVER,
    ),
    case(
        127,
        "a crowd that reads about itself while it dies",
        _HEAD
        + "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\ndef read():\n    for name in os.listdir('/proc'):\n        if name.isdigit():\n            try: os.listdir(f'/proc/{name}/task'); os.listdir(f'/proc/{name}/fd'); open(f'/proc/{name}/stat').read()\n            except OSError: pass\n"
        "for _ in range(5):\n    if os.fork() == 0:\n        try: os.nice(19)\n        except OSError: pass\n        while True:\n            try: read()\n            except OSError: time.sleep(0.01)\n"
        "while True:\n    try:\n        if os.fork() == 0: os._exit(0)\n    except OSError: time.sleep(0.001)",
        *_OVER,
    ),
    case(
        128,
        "maps that are always being changed",
        _HEAD
        + "import mmap\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfor _ in range(6):\n    if os.fork() == 0:\n        try: os.nice(19)\n        except OSError: pass\n"
        "        while True:\n            m = mmap.mmap(-1, 4 << 20); m[::4096] = bytes(1024); m.close()\nwhile True: pass",
        *_OVER,
    ),
    case(
        129,
        "an interrupt that is asked for by everybody",
        _HEAD
        + "signal.signal(signal.SIGINT, signal.SIG_IGN)\nfor n in range(1, 65):\n    try: signal.signal(n, lambda *_: None)\n    except (OSError, ValueError): pass\nwhile True: os.kill(os.getpid(), signal.SIGUSR1)",
        *_OVER,
        alive=False,
    ),
)
