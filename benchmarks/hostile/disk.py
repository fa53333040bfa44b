"""Programs that want more of the disk than they have: files without a name, behind closed doors, far down."""

from agentrl_sandbox.result import Status

from .case import case

_FULL = (Status.ERROR, Status.KILLED, Status.OUT_OF_MEMORY)
_WAIT = "\nimport time; time.sleep(0.5)\nprint('ESCAPED: more than the limit was written')"

CASES = (
    case(
        301,
        "files that lost their name",
        "import os\nkept = []\nfor i in range(10):\n    f = open('t', 'wb', buffering=0); os.unlink('t'); kept.append(f)\n    for _ in range(10): f.write(bytes(1 << 20))"
        + _WAIT,
        *_FULL,
        time_s=3,
    ),
    case(
        302,
        "files that never had one",
        "import os\nkept = []\nfor i in range(10):\n    fd = os.open('.', os.O_TMPFILE | os.O_RDWR); kept.append(fd)\n    for _ in range(10): os.write(fd, bytes(1 << 20))"
        + _WAIT,
        *_FULL,
        time_s=3,
    ),
    case(
        303,
        "files that are mapped and closed",
        "import mmap, os\nkept = []\nfor i in range(10):\n    fd = os.open('m', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 10 << 20)\n    m = mmap.mmap(fd, 10 << 20); kept.append(m)\n"
        "    for at in range(0, 10 << 20, 4096): m[at] = 1\n    os.close(fd); os.unlink('m')" + _WAIT,
        *_FULL,
        Status.CRASHED,
        time_s=4,
    ),
    case(
        304,
        "behind a directory that nobody may read",
        "import os\nos.mkdir('d', 0o300)\nfor i in range(10):\n    with open(f'd/{i}', 'wb') as f:\n        for _ in range(10): f.write(bytes(1 << 20))"
        + _WAIT,
        *_FULL,
        time_s=3,
    ),
    case(
        305,
        "in the dark, two floors down",
        "import os\nos.makedirs('a/b')\nfor i in range(10):\n    with open(f'a/b/{i}', 'wb') as f:\n        for _ in range(10): f.write(bytes(1 << 20))\n    if i == 0:\n        for d in ('a/b', 'a'):\n            try: os.chmod(d, 0o300)\n            except OSError: pass"
        + _WAIT,
        *_FULL,
        time_s=3,
    ),
    case(
        306,
        "four hundred directories, each in the other",
        "import os, time\nfor _ in range(400):\n    os.mkdir('d'); os.chdir('d')\ntime.sleep(0.3)\nprint('deep')",
        Status.OK,
        Status.ERROR,
        Status.KILLED,
        time_s=4,
    ),
    case(
        307,
        "names longer than a path may be",
        "import os, time\nfor _ in range(60):\n    os.mkdir('n' * 250); os.chdir('n' * 250)\nopen('x', 'w').write('x')\ntime.sleep(0.3)\nprint('far')",
        Status.OK,
        Status.ERROR,
        time_s=4,
    ),
    case(
        308,
        "a thread writes between two runs",
        (
            "import threading, time\ndef fill():\n    time.sleep(0.3)\n    for i in range(10):\n        with open(f'f{i}', 'wb') as f:\n            for _ in range(10): f.write(bytes(1 << 20))\n    open('all', 'w').close()\nthreading.Thread(target=fill, daemon=True).start()",
            "import os\nprint('ESCAPED') if os.path.exists('all') else print('next')",
        ),
        Status.OK,
        Status.ERROR,
        Status.KILLED,
        pause_s=1.5,
    ),
    case(
        309,
        "files on their way from a socket to nobody",
        "import os, socket\na, b = socket.socketpair()\nfor i in range(12):\n    f = open('t', 'wb', buffering=0); os.unlink('t')\n    for _ in range(10): f.write(bytes(1 << 20))\n    socket.send_fds(a, [b'x'], [f.fileno()]); f.close()"
        + _WAIT,
        *_FULL,
        time_s=3,
    ),
    case(
        310,
        "space that is only reserved",
        "import os\nfor i in range(10):\n    fd = os.open(f'r{i}', os.O_CREAT | os.O_RDWR)\n    os.posix_fallocate(fd, 0, 10 << 20)"
        + _WAIT,
        *_FULL,
        time_s=3,
    ),
    case(
        311,
        "one file with many names",
        "import os\nopen('f', 'wb').write(bytes(4 << 20))\nfor i in range(100): os.link('f', f'l{i}')\nprint(len(os.listdir()))",
        Status.OK,
        time_s=3,
        alive=True,
    ),
)
