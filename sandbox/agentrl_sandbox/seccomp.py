"""The system call filter of a session, built as classic BPF in pure Python (x86_64 and aarch64).

A list of what is denied, not of what is allowed: programs use NumPy, threads and subprocesses, and the
namespaces carry the weight; the filter takes away the kernel's less guarded doors. Runs inside the jail by
path; imports nothing of the package. Knows nothing of namespaces or sessions.
"""

from __future__ import annotations

import ctypes
import os
import struct

_EPERM, _ENOSYS = 1, 38
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
_AF_UNIX, _TIOCSTI, _TIOCLINUX = 1, 0x5412, 0x541C
_NEW_NAMESPACES = (
    0x7E020080  # CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}; TIME shares a bit with the signal
)
_NEW_NAMESPACES &= ~0xFF

# name: (x86_64, aarch64); None where the architecture has no such call.
_DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "seccomp": (317, 277),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "statmount": (457, 457),
    "listmount": (458, 458), "open_tree_attr": (467, 467),
    "unshare": (272, 97), "setns": (308, 268),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "memfd_secret": (447, 447), "personality": (135, 92), "modify_ldt": (154, None),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "iopl": (172, None), "ioperm": (173, None),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161),
    "setdomainname": (171, 162), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "lookup_dcookie": (212, 18), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "vhangup": (153, 58), "syslog": (103, 116),
    "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None), "fanotify_init": (300, 262),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "get_mempolicy": (239, 236),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "socket": (41, 198),
    # What System V's calls make outlives the process that made it.
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip

# Without private namespaces these reach the host, or let a process leave the group that is killed as one.
_DENIED_ON_HOST = {"setsid": (112, 157), "setpgid": (109, 154)}
_SIGNALS = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131)}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _IOCTL, _SOCKETPAIR = (56, 220), (435, 435), (16, 29), (53, 199)
_PIDFD_SEND_SIGNAL = (424, 424)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def build(machine: str, *, on_host: bool = False, only_signal: int | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        machine: "x86_64" or "aarch64", as `os.uname().machine` says.
        on_host: the session shares the host's namespaces: deny more.
        only_signal: the one process that may be signalled (where nothing else guards the host's).

    Raises:
        ValueError: no table for this machine.
    """
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no system call table for {machine}; known: {', '.join(_ARCHITECTURES)}")
    column, audit = _ARCHITECTURES[machine]
    deny = _instruction(_RETURN, _ERRNO | _EPERM)
    allow = _instruction(_RETURN, _ALLOW)
    out = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":  # x32 calls carry bit 30
        out += [_instruction(_JUMP_GREATER, 0x40000000, 0, 1), _instruction(_RETURN, _KILL)]
    denied = {**_DENIED, **(_DENIED_ON_HOST if on_host else {})}
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            out += [_instruction(_JUMP_EQUAL, number, 0, 1), deny]
    # glibc falls back from clone3 only on ENOSYS; clone's flags can be seen, clone3's not.
    out += [
        _instruction(_JUMP_EQUAL, _CLONE3[column], 0, 1),
        _instruction(_RETURN, _ERRNO | _ENOSYS),
    ]
    out += _with_argument(
        _CLONE[column], 0, [_instruction(_JUMP_ANY_BIT, _NEW_NAMESPACES, 0, 1), deny, allow]
    )
    out += _with_argument(_SOCKETPAIR[column], 0, [_instruction(_JUMP_EQUAL, _AF_UNIX, 1, 0), deny, allow])
    out += _with_argument(
        _IOCTL[column],
        1,
        [_instruction(_JUMP_EQUAL, _TIOCSTI, 1, 0), _instruction(_JUMP_EQUAL, _TIOCLINUX, 0, 1), deny, allow],
    )
    if only_signal is not None:
        for numbers in _SIGNALS.values():
            out += _with_argument(
                numbers[column], 0, [_instruction(_JUMP_EQUAL, only_signal, 1, 0), deny, allow]
            )
        out += [_instruction(_JUMP_EQUAL, _PIDFD_SEND_SIGNAL[column], 0, 1), deny]
    out.append(allow)
    return b"".join(out)


# What can be done to another process: numbers (x86_64, aarch64), the argument that names it or its group.
_TOWARDS_PROCESSES = {
    "kill": ((62, 129), 0), "tkill": ((200, 130), 0), "tgkill": ((234, 131), 0), "setpgid": ((109, 154), 1),
    "rt_sigqueueinfo": ((129, 138), 0), "rt_tgsigqueueinfo": ((297, 240), 0), "pidfd_open": ((434, 434), 0),
    "prlimit64": ((302, 261), 0), "sched_setaffinity": ((203, 122), 0), "sched_setparam": ((142, 118), 0),
}  # fmt: skip
# The same, where the first argument says whether the second is a process, a group, or (this number) a user.
_TOWARDS_MANY = {"setpriority": ((141, 140), 2), "ioprio_set": ((251, 30), 3)}


def build_guard(machine: str, protected: tuple[int, ...]) -> bytes:
    """A filter, beside any other, under which nothing can be done to the processes `protected`.

    For a session whose supervisor has the same user as the program. `-1` (everybody) is protected always, and
    so are the process groups with these numbers.
    """
    column = _ARCHITECTURES[machine][0]
    typing = [_instruction(_JUMP_EQUAL, _TIOCSTI, 1, 0), _instruction(_JUMP_EQUAL, _TIOCLINUX, 0, 1)]
    targets = sorted({-1, *protected, *(-pid for pid in protected)})
    deny, allow = _instruction(_RETURN, _ERRNO | _EPERM), _instruction(_RETURN, _ALLOW)
    tests = [_instruction(_JUMP_EQUAL, pid, len(targets) - at, 0) for at, pid in enumerate(targets)]
    out = [_instruction(_LOAD, _NUMBER)]
    for numbers, argument in _TOWARDS_PROCESSES.values():
        out += _with_argument(numbers[column], argument, [*tests, allow, deny])
    for numbers, user in _TOWARDS_MANY.values():
        everybody = [_instruction(_JUMP_EQUAL, user, 0, 1), deny]
        out += _with_argument(
            numbers[column], 0, [*everybody, _instruction(_LOAD, _ARGUMENT + 8), *tests, allow, deny]
        )
    # An engine's profile compares 64 bits of the request, the kernel obeys 32: deny typing here once more.
    out += _with_argument(_IOCTL[column], 1, [*typing, deny, allow])
    return b"".join([*out, allow])


def _with_argument(number: int, argument: int, tests: list[bytes]) -> list[bytes]:
    """If the call is `number`, load its argument's low half and run `tests`, which always return."""
    load = _instruction(_LOAD, _ARGUMENT + 8 * argument)
    return [_instruction(_JUMP_EQUAL, number, 0, 1 + len(tests)), load, *tests]


def install(program: bytes) -> None:
    """Load the filter for this process and its children. Needs no_new_privs. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    header = Program(len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, 2, ctypes.byref(header), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp filter refused: {os.strerror(code)}")
