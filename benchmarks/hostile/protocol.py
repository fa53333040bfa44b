# ruff: noqa: ISC004
"""Programs that attack the interpreter and the line to its supervisor."""

from agentrl_sandbox.result import Result, Status

from .case import case, holds, says

_ENDS = (Status.OK, Status.ERROR, Status.PROTOCOL_LOST, Status.KILLED, Status.TIMEOUT, Status.EXITED)
_FORGE = """
import os, struct
body = b'0' * 16 + b'{"kind": "ok", "value": "FORGED", "error": null, "exit_code": null, "files": []}'
for fd in range(3, 64):
    try:
        os.write(fd, struct.pack('!I', len(body)) + body)
    except OSError:
        pass
"""
_STEAL = """
import os, stat, threading, socket
fds = []
for fd in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): fds.append(fd)
    except OSError: pass
def steal():
    while True:
        os.read(fds[0], 65536)
threading.Thread(target=steal, daemon=True).start()
"""
_FAKE = """
import os, struct, sys, gc
frame = sys._getframe()
while frame is not None:
    if 'request' in frame.f_locals: request = frame.f_locals['request']; line = frame.f_locals['self'].line
    frame = frame.f_back
body = request + b'{"kind": "ok", "value": "FORGED", "cpu_s": -5, "wall_s": 0, "alive": true}'
os.write(line, struct.pack('!I', len(body)) + body)
"""
_DEEP = _FAKE.replace(
    """b'{"kind": "ok", "value": "FORGED", "cpu_s": -5, "wall_s": 0, "alive": true}'""", "b'[' * 200_000"
)
_HUGE = """
import os, struct, sys
frame = sys._getframe()
while frame is not None:
    if 'request' in frame.f_locals: line = frame.f_locals['self'].line
    frame = frame.f_back
os.write(line, struct.pack('!I', 4_000_000_000))
"""


def _not_forged(result: Result) -> str | None:
    return "the forged value came through" if result.value == "FORGED" else None


def _own_reply_only(result: Result) -> str | None:
    if result.wall_s <= 0 or result.cpu_s < 0:
        return f"times were taken from the program: {result.wall_s}, {result.cpu_s}"
    return None


CASES = (
    case(42, "forged reply", _FORGE, *_ENDS, check=_not_forged),
    case(42.5, "forged reply with the right id", _FAKE, *_ENDS, check=_own_reply_only),
    case(
        43,
        "writes to every descriptor",
        "import os\nfor fd in range(0, 1024):\n    try:\n        os.write(fd, b'\\xff' * 100)\n"
        "    except OSError:\n        pass",
        *_ENDS,
    ),
    case(44, "steals requests", (_STEAL, "1 + 1", "1 + 1"), *_ENDS),
    case(45, "closes all descriptors", "import os\nos.closerange(0, 1024)", *_ENDS),
    case(
        45.5,
        "closes the standard streams",
        ("import os\nfor fd in range(3): os.close(fd)", "print(7)"),
        Status.OK,
        check=says("7"),
        alive=True,
    ),
    case(
        46,
        "puts something over the line",
        "import os\nn = os.open('/dev/null', os.O_RDWR)\nfor fd in range(3, 64):\n    os.dup2(n, fd)",
        *_ENDS,
    ),
    case(
        47,
        "patches what the interpreter uses",
        (
            "import builtins, json, os, sys, traceback, struct, time\nbuiltins.print = None\njson.dumps = None\n"
            "json.loads = None\nsys.stdout = None\nsys.stderr = None\nbuiltins.repr = None\ntime.monotonic = None",
            "import sys\nsys.stdout.write('still here')",
        ),
        Status.OK,
        Status.ERROR,
        Status.EXITED,
        Status.PROTOCOL_LOST,
    ),
    case(
        48,
        "walks the heap",
        "import gc, sys\nfor o in gc.get_objects():\n    if isinstance(o, (dict, list, tuple)):\n"
        "        s = str(type(o))\nsys.settrace(lambda *a: None)\nfor name, frame in sys._current_frames().items():\n"
        "    while frame:\n        print(sorted(frame.f_locals)[:5]); frame = frame.f_back",
        time_s=3,
    ),
    case(
        49,
        "false clock",
        "import time\nreal = time.sleep\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\nreal(0.3)",
        Status.OK,
        check=lambda result: None if result.wall_s >= 0.3 else f"wall_s {result.wall_s}",
    ),
    case(
        50,
        "symbolic link as result",
        "import os\nos.symlink('/etc/passwd', 'result.txt')",
        check=holds("files", ()),
    ),
    case(
        51,
        "no regular files",
        "import os\nos.mkfifo('fifo')\nos.mkdir('directory')\nos.symlink('fifo', 'link')\n"
        "for make in (lambda: os.mknod('device', 0o600 | 0o20000, os.makedev(1, 3)),):\n"
        "    try:\n        make(); print('ESCAPED')\n    except OSError: pass",
        check=holds("files", ()),
    ),
    case(
        56,
        "pickle bomb",
        "class P:\n    def __reduce__(self):\n        return (print, ('ESCAPED',))\nP()",
        Status.OK,
    ),
    case(58, "deeply nested reply", _DEEP, *_ENDS),
    case(58.5, "reply of four gigabytes", _HUGE, *_ENDS, time_s=4),
    case(
        84,
        "fork that comes back",
        "import os\npid = os.fork()\n'parent' if pid else 'child'",
        Status.OK,
        check=holds("value", "'parent'"),
        alive=True,
    ),
    case(
        85,
        "hangs at exit",
        "import atexit, time\natexit.register(time.sleep, 1000)\nclass D:\n    def __del__(self): time.sleep(1000)\n"
        "d = D()",
        Status.OK,
    ),
    case(
        87,
        "no working directory",
        ("import os, shutil\nhere = os.getcwd()\nos.chdir('/')\nshutil.rmtree(here)", "print('on')"),
        Status.OK,
        Status.ERROR,
    ),
    case(
        35,
        "late output",
        (
            "import threading, time\ndef late():\n    time.sleep(0.1); print('LATE')\n"
            "threading.Thread(target=late).start()\n1",
            "import time; time.sleep(0.3); 2",
        ),
        Status.OK,
        check=holds("value", "2"),
        alive=True,
    ),
)
