"""Programs that ask the kernel for what no program needs."""

from agentrl_sandbox.result import Status

from .case import case

_CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == 'aarch64'
def call(name, x86, aarch64, *arguments):
    number = aarch64 if arm else x86
    if number is None: return
    if libc.syscall(number, *arguments) >= 0: print('ESCAPED', name)
    else: print(name, ctypes.get_errno())
"""
_FOREIGN = """
import ctypes, mmap, os
if os.uname().machine == 'x86_64':
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(@CODE@)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    print('ESCAPED' if ctypes.CFUNCTYPE(ctypes.c_long)(address)() > 0 else 'refused')
"""
_HARSH = (Status.OK, Status.ERROR, Status.CRASHED, Status.KILLED)

CASES = (
    case(
        68,
        "new namespaces",
        _CALL + "call('unshare', 272, 97, 0x10000000)\ncall('clone', 56, 220, 0x10000011, 0, 0, 0, 0)\n"
        "args = (ctypes.c_uint64 * 11)(0x10000000)\ncall('clone3', 435, 435, ctypes.byref(args), 88)\n"
        "call('setns', 308, 268, os.open('/dev/null', 0), 0)",
        Status.OK,
    ),
    case(
        69,
        "mounts",
        _CALL + "call('mount', 165, 40, b'none', b'/tmp', b'tmpfs', 0, None)\n"
        "call('pivot_root', 155, 41, b'.', b'.')\ncall('umount2', 166, 39, b'/tmp', 2)\n"
        "call('chroot', 161, 51, b'/tmp')\ncall('open_tree', 428, 428, -100, b'/', 1)\n"
        "call('move_mount', 429, 429, -100, b'/', -100, b'/tmp', 0)\ncall('fsopen', 430, 430, b'tmpfs', 0)",
        Status.OK,
    ),
    case(
        70,
        "keys",
        _CALL + "call('keyctl', 250, 219, 0, -3, 1)\n"
        "call('add_key', 248, 217, b'user', b'x', b'y', 1, -2)\ncall('request_key', 249, 218, b'user', b'x', None, 0)",
        Status.OK,
    ),
    case(
        71,
        "bpf and perf",
        _CALL
        + "attr = ctypes.create_string_buffer(128)\nattr[4] = 112\ncall('bpf', 321, 280, 0, attr, 128)\n"
        "call('perf_event_open', 298, 241, attr, 0, -1, -1, 0)",
        Status.OK,
    ),
    case(
        72,
        "io_uring",
        _CALL + "attr = ctypes.create_string_buffer(256)\ncall('io_uring_setup', 425, 425, 4, attr)\n"
        "print('ESCAPED: it reached the kernel') if ctypes.get_errno() not in (1, 38) else None",
        Status.OK,
    ),
    case(73, "userfaultfd", _CALL + "call('userfaultfd', 323, 282, 1)", Status.OK),
    case(
        74,
        "keystrokes into a terminal",
        # A new terminal of one's own (containers have a private devpts) is nobody's keyboard; typing is denied
        # there too, also with bits above the 32 that the kernel looks at.
        _CALL + "import fcntl\nfor path in ('/dev/tty', '/dev/console', '/dev/pts/0'):\n"
        "    try:\n        fd = os.open(path, os.O_RDWR); print('ESCAPED', path)\n    except OSError: pass\n"
        "for fd in range(3):\n    try:\n        fcntl.ioctl(fd, 0x5412, b'x'); print('ESCAPED')\n"
        "    except OSError: pass\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        os.setsid(); master, slave = os.openpty(); fcntl.ioctl(slave, 0x540E, 0)\n"
        "        for request in (0x5412, 0x100005412):\n"
        "            call('TIOCSTI', 16, 29, slave, ctypes.c_ulong(request), ctypes.create_string_buffer(b'x'))\n"
        "    except OSError as error: print(error)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)",
        Status.OK,
        time_s=3,
    ),
    # mov eax, 20 (getpid of 32 bit); int 0x80; ret
    case(75, "32 bit call", _FOREIGN.replace("@CODE@", r"b'\xb8\x14\x00\x00\x00\xcd\x80\xc3'"), *_HARSH),
    # mov eax, 0x40000027 (getpid of x32); syscall; ret
    case(75.5, "x32 call", _FOREIGN.replace("@CODE@", r"b'\xb8\x27\x00\x00\x40\x0f\x05\xc3'"), *_HARSH),
    case(
        76,
        "personality",
        _CALL + "call('personality', 135, 92, 0x40000)\n"
        "call('modify_ldt', 154, None, 1, ctypes.create_string_buffer(16), 16)",
        Status.OK,
    ),
    case(
        77,
        "higher limits",
        "import resource\nfor name in ('AS', 'NPROC', 'NOFILE', 'FSIZE', 'CORE'):\n"
        "    which = getattr(resource, 'RLIMIT_' + name)\n    soft, hard = resource.getrlimit(which)\n"
        "    try:\n        resource.setrlimit(which, (hard + 1000, hard + 1000)); print('ESCAPED', name)\n"
        "    except (ValueError, OSError): pass",
        Status.OK,
    ),
    case(
        78,
        "priority",
        "import os\nfor what in (lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, "
        "os.sched_param(10))):\n    try:\n        what(); print('ESCAPED')\n    except OSError: pass",
        Status.OK,
    ),
    case(
        79,
        "kernel settings",
        "for path, text in (('/proc/self/oom_score_adj', '-1000'), ('/proc/sys/kernel/hostname', 'x'), "
        "('/proc/sys/vm/overcommit_memory', '1'), ('/proc/sysrq-trigger', 'h'), ('/sys/power/state', 'x')):\n"
        "    try:\n        with open(path, 'w') as f: f.write(text)\n        print('ESCAPED', path)\n"
        "    except OSError: pass",
        Status.OK,
    ),
)
