"""Landlock rules of a session through raw system calls. Runs inside the jail; imports nothing of the package.

Knows nothing of namespaces or sessions. Sources: Linux `Documentation/userspace-api/landlock.rst`.
"""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result


def abi() -> int:
    """Version of the kernel's Landlock interface; 0 where there is none."""
    try:
        return _call(_CREATE, None, 0, 1)
    except OSError:
        return 0


def _handled(version: int) -> int:
    bits = 13  # version 1: execute .. make_sym
    if version >= 2:
        bits = 14  # refer
    if version >= 3:
        bits = 15  # truncate
    return (1 << bits) - 1


def restrict(
    readable: list[str],
    writable: list[str],
    *,
    files: list[str] | None = None,
    listed: list[str] | None = None,
) -> int:
    """Confine this process: read below `readable`, everything but device nodes below `writable`.

    `files` may be read and written; of what is below `listed` the names may be seen. TCP (version 4),
    abstract sockets and signals to outside (version 6) are denied where the kernel can. Needs no_new_privs.
    Returns the version; OSError where there is none.
    """
    version = abi()
    handled = _handled(version)
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    attributes = struct.pack("=QQQ", handled, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_CREATE, ctypes.c_char_p(attributes), size, 0)
    try:
        everything = handled & ~(_MAKE_CHAR | _MAKE_BLOCK)
        for path in readable:
            _allow(ruleset, path, _READ & handled)
        for path in writable:
            _allow(ruleset, path, everything)
        for path in listed or ():
            _allow(ruleset, path, _READ_DIR & handled)
        for path in files or ():
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _TRUNCATE) & handled)
        _call(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # what cannot be reached needs no rule
    try:
        if not os.path.isdir(path):
            access &= _FILE_ONLY
        _call(_ADD, ruleset, 1, ctypes.c_char_p(struct.pack("=Qi", access, fd)), 0)
    finally:
        os.close(fd)
