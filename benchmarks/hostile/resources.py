"""Programs that take too much: processes, memory, output, time, files, threads."""

from agentrl_sandbox.result import Status

from .case import bounded, case, holds, says

FULL = (Status.ERROR, Status.KILLED, Status.OUT_OF_MEMORY)

_DEAD = (Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.KILLED, Status.CRASHED, Status.ERROR)

CASES = (
    case(
        1,
        "fork bomb",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        Status.TIMEOUT,
        Status.OUT_OF_MEMORY,
        Status.KILLED,
    ),
    case(2, "memory bomb", "x = []\nwhile True:\n    x.append(bytearray(20 << 20))", *_DEAD, time_s=5),
    case(
        3, "five gigabytes at once", "bytearray(5 << 30)", Status.ERROR, check=says("MemoryError"), alive=True
    ),
    case(
        4,
        "many children each below the limit",
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = bytearray(100 << 20)\n"
        "        for i in range(0, len(x), 4096): x[i] = 1\n        time.sleep(3)\n        os._exit(0)\n"
        "died = sum(os.WIFSIGNALED(os.wait()[1]) for _ in range(8))\n"
        "print('died', died) if died else print('ESCAPED: 800 MB under a limit of 256')",
        Status.OK,
        Status.OUT_OF_MEMORY,
        Status.ERROR,
        Status.TIMEOUT,
        time_s=6,
    ),
    case(5, "endless print", "while True:\n    print('y' * 50)", Status.TIMEOUT, check=bounded),
    case(
        6,
        "endless line",
        "import sys\nwhile True:\n    sys.stdout.write('x' * 1000)",
        Status.TIMEOUT,
        check=bounded,
    ),
    case(
        7,
        "a gigabyte in few writes",
        "import os\nd = b'x' * (1 << 24)\nfor _ in range(64):\n    os.write(1, d)",
        Status.OK,
        Status.TIMEOUT,
        check=bounded,
        time_s=8,
    ),
    case(
        8,
        "endless stderr",
        "import sys\nwhile True:\n    sys.stderr.write('e' * 1000)",
        Status.TIMEOUT,
        check=bounded,
    ),
    case(9, "recursion", "def f():\n    f()\nf()", Status.ERROR, check=says("RecursionError"), alive=True),
    case(
        10,
        "recursion without limit",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: sorted([1], key=lambda x: f())\nf()",
        *_DEAD,
        time_s=5,
    ),
    case(
        34,
        "threads that never end",
        "import threading, time\nfor _ in range(3):\n    threading.Thread(target=time.sleep, args=(1000,)).start()",
        Status.OK,
        alive=True,
    ),
    case(
        36,
        "ten thousand threads",
        "import threading, time\nfor _ in range(10_000):\n"
        "    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nprint('ESCAPED')",
        Status.ERROR,
        Status.OUT_OF_MEMORY,
        time_s=5,
    ),
    case(37, "sleep for ever", "import time\ntime.sleep(1e9)", Status.TIMEOUT, alive=True),
    case(38, "busy loop", "while True:\n    pass", Status.TIMEOUT, alive=True),
    case(
        39,
        "loop that eats the interrupt",
        "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass",
        Status.TIMEOUT,
        alive=False,
    ),
    case(40, "a power too high", "x = 10**10**9", Status.TIMEOUT, Status.ERROR, Status.OUT_OF_MEMORY),
    case(
        40.5,
        "regular expression that backtracks",
        "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
        Status.TIMEOUT,
    ),
    case(
        41,
        "algebra that hangs",
        "import sympy\nx = sympy.Symbol('x')\nsympy.factorint((2**257 - 1) * (2**263 - 1) * (2**269 - 1))",
        Status.TIMEOUT,
        needs="sympy",
    ),
    case(
        52,
        "ten gigabytes in one file",
        "with open('big', 'wb') as f:\n    for _ in range(10_000):\n        f.write(b'x' * (1 << 20))\n"
        "print('ESCAPED')",
        *FULL,
        time_s=5,
    ),
    case(
        52.5,
        "ten gigabytes in many files",
        "for i in range(1000):\n    with open(f'big{i}', 'wb') as f:\n        f.write(b'x' * (10 << 20))\n"
        "print('ESCAPED')",
        *FULL,
        time_s=5,
    ),
    case(
        53,
        "a million empty files",
        "for i in range(1_000_000):\n    open(str(i), 'w').close()\nprint('ESCAPED')",
        Status.ERROR,
        Status.KILLED,
        Status.OUT_OF_MEMORY,
        time_s=10,
    ),
    case(
        54,
        "sparse file",
        "with open('sparse', 'wb') as f:\n    f.truncate(10 << 30)\nprint('ESCAPED')",
        Status.ERROR,
        alive=True,
    ),
    case(
        55,
        "all descriptors",
        "fds = []\nwhile True:\n    fds.append(open('/dev/null'))",
        Status.ERROR,
        check=says("Too many open files"),
        alive=True,
    ),
    case(
        57, "huge repr", "class R:\n    def __repr__(self):\n        return 'x' * 50_000_000\nR()", Status.OK
    ),
    case(
        57.3,
        "repr that loops",
        "class R:\n    def __repr__(self):\n        while True: pass\nR()",
        Status.TIMEOUT,
        alive=True,
    ),
    case(
        57.6,
        "repr that raises",
        "class R:\n    def __repr__(self):\n        print('half'); raise ValueError('no')\nR()",
        Status.ERROR,
        check=says("half", "ValueError: no"),
        alive=True,
    ),
    case(
        86,
        "flood of warnings",
        "import warnings\nwarnings.simplefilter('always')\nfor i in range(20_000):\n    warnings.warn(str(i))",
        Status.OK,
        Status.TIMEOUT,
        time_s=6,
        check=bounded,
    ),
    case(
        59,
        "ten megabytes of source",
        "x = 1\n" * 1_700_000,
        Status.ERROR,
        check=says("longer than"),
        alive=True,
    ),
    case(
        21,
        "ignores all signals",
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        Status.TIMEOUT,
        alive=False,
    ),
    case(
        23,
        "zombies",
        "import os\nfor _ in range(200):\n    if os.fork() == 0:\n        os._exit(0)",
        time_s=5,
    ),
    case(30, "os._exit", "import os\nos._exit(5)", Status.EXITED, check=holds("exit_code", 5), alive=False),
    case(29, "sys.exit", "import sys\nsys.exit(3)", Status.EXITED, check=holds("exit_code", 3), alive=True),
    case(
        31,
        "kills itself",
        "import os\nos.kill(os.getpid(), 9)",
        Status.KILLED,
        check=holds("signal", 9),
        alive=False,
    ),
    case(32, "abort", "import os\nos.abort()", Status.CRASHED, check=holds("signal", 6), alive=False),
    case(
        11,
        "null pointer",
        "import ctypes\nctypes.string_at(0)",
        Status.CRASHED,
        check=holds("signal", 11),
        alive=False,
    ),
)
