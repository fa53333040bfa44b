"""The system call filter of a session, built as classic BPF in pure Python (x86_64 and aarch64).

A list of what is denied, not of what is allowed: programs use NumPy, threads and subprocesses, and the
namespaces carry the weight; the filter takes away the kernel's less guarded doors. Runs inside the jail by
path; imports nothing of the package. Knows nothing of namespaces or sessions.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

_EPERM, _ENOSYS = 1, 38
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
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
    # The numbers of what others have made are easily guessed.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # Files that all sessions read would tell each of them what the others and the host do with them.
    "inotify_add_watch": (254, 27),
}  # fmt: skip

# Without private namespaces these reach the host, or let a process leave the group that is killed as one.
# Landlock guards what files hold, not their modes, times, owners and attributes. Descriptors that are sent
# are seen by nobody on their way, so that nobody could count what they hold.
_DENIED_ON_HOST = {
    "setsid": (112, 157), "setpgid": (109, 154),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "connect": (42, 203), "bind": (49, 200),
}  # fmt: skip
# These take from what the host gives to each user, and the user is not the session's own.
_DENIED_TO_SHARED_USER = {"inotify_init": (253, None), "inotify_init1": (294, 26)}
# Where no control group counts memory, that which is in no process's own cannot be counted.
_DENIED_UNCOUNTED = {"memfd_create": (319, 279)}
_SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
_ON_ITSELF = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118)}
_FCNTL, _SETSOCKOPT, _PRCTL, _SENDTO = (72, 25), (54, 208), (157, 167), (44, 206)
_SETLEASE, _NOTIFY, _SETPIPE_SZ, _SETOWN, _SETOWN_EX = 1024, 1026, 1031, 8, 15
_SOL_SOCKET, _SO_SNDBUF, _SO_RCVBUF, _PR_SET_DUMPABLE = 1, 7, 8, 4
_FIOSETOWN, _SIOCSPGRP, _SETFLAGS, _SETFLAGS_32, _SETXATTR = (
    0x8901,
    0x8902,
    0x40086602,
    0x40046602,
    0x401C5820,
)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _IOCTL, _SOCKETPAIR = (56, 220), (435, 435), (16, 29), (53, 199)
_PIDFD_SEND_SIGNAL = (424, 424)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


_DENY, _PERMIT = _instruction(_RETURN, _ERRNO | _EPERM), _instruction(_RETURN, _ALLOW)


@dataclass(frozen=True)
class Surroundings:
    """What the filter has to make up for.

    Attributes:
        on_host: the session shares the host's namespaces: its own process id is the one that may be named.
        own: the process id of the interpreter.
        signals: other processes could be signalled (Landlock before version 6).
        shared_user: the host has other processes of this user.
        uncounted: no control group counts the session's memory.
        protected: processes to which nothing can be done; see `build_guard`.
    """

    on_host: bool = False
    own: int = 0
    signals: bool = False
    shared_user: bool = False
    uncounted: bool = False
    protected: tuple[int, ...] = ()


_JAIL = Surroundings()


def build(machine: str, around: Surroundings = _JAIL) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        machine: "x86_64" or "aarch64", as `os.uname().machine` says.
        around: what holds besides.

    Raises:
        ValueError: no table for this machine.
    """
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no system call table for {machine}; known: {', '.join(_ARCHITECTURES)}")
    column, audit = _ARCHITECTURES[machine]
    out = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":  # x32 calls carry bit 30
        out += [_instruction(_JUMP_GREATER, 0x40000000, 0, 1), _instruction(_RETURN, _KILL)]
    if around.protected:
        out += _guard(column, around.protected)
    denied = {
        **_DENIED,
        **(_DENIED_ON_HOST if around.on_host else {}),
        **(_DENIED_TO_SHARED_USER if around.shared_user else {}),
        **(_DENIED_UNCOUNTED if around.uncounted else {}),
    }
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            out += [_instruction(_JUMP_EQUAL, number, 0, 1), _DENY]
    # glibc falls back from clone3 only on ENOSYS; clone's flags can be seen, clone3's not.
    out += [
        _instruction(_JUMP_EQUAL, _CLONE3[column], 0, 1),
        _instruction(_RETURN, _ERRNO | _ENOSYS),
    ]
    out += _with_argument(
        _CLONE[column], 0, [_instruction(_JUMP_ANY_BIT, _NEW_NAMESPACES, 0, 1), _DENY, _PERMIT]
    )
    out += _with_argument(_SOCKETPAIR[column], 0, [_instruction(_JUMP_EQUAL, _AF_UNIX, 1, 0), _DENY, _PERMIT])
    foreign = around.on_host and around.signals
    requests = [_TIOCSTI, _TIOCLINUX]
    requests += [_SETFLAGS, _SETFLAGS_32, _SETXATTR] if around.on_host else []
    requests += [_FIOSETOWN, _SIOCSPGRP] if foreign else []
    out += _with_argument(_IOCTL[column], 1, _none_of(requests))
    if foreign:
        out += _with_argument(_FCNTL[column], 1, _none_of([_SETOWN, _SETOWN_EX]))
    if around.uncounted:
        out += _uncounted(column)
    if around.on_host:
        out += _on_host(column, around)
    return b"".join([*out, _PERMIT])


def _none_of(values: list[int]) -> list[bytes]:
    """Deny the loaded argument when it is one of `values`, else allow."""
    tests = [_instruction(_JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [*tests, _PERMIT, _DENY]


def _one_of(values: list[int]) -> list[bytes]:
    """Allow the loaded argument when it is one of `values`, else deny."""
    tests = [_instruction(_JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [*tests, _DENY, _PERMIT]


def _uncounted(column: int) -> list[bytes]:
    """Sockets keep the size that they are counted with, and processes let their memory be looked at."""
    other_level = [_instruction(_JUMP_EQUAL, _SOL_SOCKET, 1, 0), _PERMIT]
    option = [_instruction(_LOAD, _ARGUMENT + 16), *_none_of([_SO_SNDBUF, _SO_RCVBUF])]
    return [
        *_with_argument(_SETSOCKOPT[column], 1, [*other_level, *option]),
        *_with_argument(_PRCTL[column], 0, _none_of([_PR_SET_DUMPABLE])),
    ]


def _on_host(column: int, around: Surroundings) -> list[bytes]:
    """Limits, priority and processors of the caller only; signals too, where nothing else sees to them.

    A pair of datagram sockets could send to any path of the host: no address is given to a socket.
    """
    nowhere = [_instruction(_JUMP_EQUAL, 0, 1, 0), _DENY, _instruction(_LOAD, _ARGUMENT + 36)]
    out = _with_argument(_SENDTO[column], 4, [*nowhere, _instruction(_JUMP_EQUAL, 0, 1, 0), _DENY, _PERMIT])
    for numbers in _ON_ITSELF.values():
        out += _with_argument(numbers[column], 0, _one_of([0, around.own]))
    for numbers, user in _TOWARDS_MANY.values():
        everybody = [_instruction(_JUMP_EQUAL, user, 0, 1), _DENY]
        who = [_instruction(_LOAD, _ARGUMENT + 8), *_one_of([0, around.own])]
        out += _with_argument(numbers[column], 0, [*everybody, *who])
    if around.signals:
        for numbers in _SIGNALS.values():
            out += _with_argument(numbers[column], 0, _one_of([around.own]))
        out += [_instruction(_JUMP_EQUAL, _PIDFD_SEND_SIGNAL[column], 0, 1), _DENY]
    return out


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
    return b"".join([_instruction(_LOAD, _NUMBER), *_guard(column, protected), _PERMIT])


def _guard(column: int, protected: tuple[int, ...]) -> list[bytes]:
    """The tests of `build_guard`; what they have nothing against goes on to those that follow."""
    targets = sorted({-1, *protected, *(-pid for pid in protected)})
    out = []
    for numbers, argument in _TOWARDS_PROCESSES.values():
        out += _unless(numbers[column], argument, targets)
    for numbers, user in _TOWARDS_MANY.values():
        out += _unless(numbers[column], 0, [user])
        out += _unless(numbers[column], 1, targets)
    # Leases and watches on shared files, and more than its part of what all sessions' user may have in pipes.
    out += _unless(_FCNTL[column], 1, [_SETLEASE, _NOTIFY, _SETPIPE_SZ])
    # An engine's profile compares 64 bits of the request, the kernel obeys 32: deny typing here once more.
    return out + _unless(_IOCTL[column], 1, [_TIOCSTI, _TIOCLINUX])


def _unless(number: int, argument: int, refused: list[int]) -> list[bytes]:
    """Deny the call `number` when the low half of an argument is one of `refused`, else go on."""
    load = _instruction(_LOAD, _ARGUMENT + 8 * argument)
    tests = [_instruction(_JUMP_EQUAL, value, len(refused) - at, 0) for at, value in enumerate(refused)]
    body = [load, *tests, _instruction(_JUMP, 1), _DENY, _instruction(_LOAD, _NUMBER)]
    return [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


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
