"""The files of a session's room: how much they are, and whether any of them was changed.

Knows nothing of processes, runs or frames. Standard library only.
"""

from __future__ import annotations

import os
import resource
import stat

_RLIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 1000


def exceeds(directory, limits, nameless):
    """True when the files below `directory` are more, or larger, than the limits.

    `nameless()` gives the bytes of files of the session that no directory holds; it is asked for last. A walk
    by descriptors: no name is too long for it, no nesting overflows a stack, and directories that the program
    closed are opened by their owner, who is this process.
    """
    count = size = 0
    stack, linked = [], set()
    try:
        stack.append(_open(directory, None))
        while stack:
            entries = os.listdir(stack[-1][0]) if stack[-1][1] is None else stack[-1][1]
            stack[-1] = (stack[-1][0], entries)
            if not entries:
                os.close(stack.pop()[0])
                continue
            name = entries.pop()
            count += 1
            try:
                found = os.stat(name, dir_fd=stack[-1][0], follow_symlinks=False)
            except OSError:
                continue
            if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode) or found.st_ino not in linked:
                size += found.st_blocks * 512  # a file of several names lies on the disk once
            linked.add(found.st_ino)
            if count > limits["files"] or size > limits["file_mb"] << 20 or len(stack) > _DEEPEST:
                return True
            if stat.S_ISDIR(found.st_mode):
                try:
                    stack.append(_open(name, stack[-1][0]))
                except OSError:
                    continue
        return size + nameless() > limits["file_mb"] << 20
    except OSError:
        return False  # the room itself has gone
    finally:
        for fd, _ in stack:
            os.close(fd)


def _open(name, parent):
    """`(descriptor, None)` of a directory, opened to its owner where the program closed it."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent), None
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent), None


def describe_room(directory):
    """What a program could change and leave: its directory and those beside it, and this process's limits.

    Nothing can be put into a directory, taken out of it or set on it without a change of its ctime, which no
    program can set; contents and mode are compared too, for clocks that tick slowly.
    """
    parent, found = os.path.dirname(directory), []
    try:
        for path in (parent, *(os.path.join(parent, name) for name in sorted(os.listdir(parent)))):
            status = os.lstat(path)
            attributes = os.listxattr(path, follow_symlinks=False)
            found.append(
                (path, os.listdir(path), status.st_mode, status.st_ctime_ns, status.st_mtime_ns, attributes)
            )
    except OSError as error:
        return error  # equal to nothing but itself
    limits = [resource.getrlimit(number) for number in _RLIMITS]
    return found, limits, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
