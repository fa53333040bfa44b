"""Directories of this machine for sessions without a private root, and what dead owners left of them.

A collection of rooms belongs to one process, which holds a lock on a file in it for as long as it lives: the
kernel lets go of it whatever way the process ends. A collection of the same user that nobody holds is removed
at the next start of a sandbox. Knows nothing of sessions.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import threading
import time

from .removal import remove_tree

PREFIX = "agentrl-sandbox-rooms-"
_IN_THE_MAKING = "agentrl-sandbox-making-"
_LOCK = "owner.lock"
_OLD_S = 3600.0


class Rooms:
    """The rooms of one sandbox; their directory lives from the first of them to the last. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._directory: str | None = None
        self._owner = -1
        self._count = 0

    def make(self, uid: int | None = None) -> str:
        """A new room with a directory `work` in it, for user `uid` (None: this process's own); its path."""
        with self._mutex:
            if self._directory is None:
                self._begin()
            room = tempfile.mkdtemp(prefix="s", dir=self._directory)
            self._count += 1
        work = os.path.join(room, "work")
        os.mkdir(work, 0o700)
        if uid is not None:
            for path in (room, work):
                os.chown(path, uid, uid)
        return room

    def _begin(self) -> None:
        made = tempfile.mkdtemp(prefix=_IN_THE_MAKING)
        os.chmod(made, 0o711)
        self._owner = os.open(os.path.join(made, _LOCK), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        # Under this name it can be swept, so it has it only now.
        self._directory = made.replace(_IN_THE_MAKING, PREFIX)
        os.rename(made, self._directory)

    def remove(self, room: str) -> None:
        """Remove a room, and with the last one the directory of all."""
        remove_tree(room)
        with self._mutex:
            self._count -= 1
            if self._count == 0:
                self._end()

    def close(self) -> None:
        """Remove all of them."""
        with self._mutex:
            self._end()

    def _end(self) -> None:
        if self._directory is not None:
            remove_tree(self._directory)
            os.close(self._owner)
            self._directory, self._owner, self._count = None, -1, 0


def sweep() -> int:
    """Remove what dead processes of this user left; the number of collections."""
    with os.scandir(tempfile.gettempdir()) as entries:
        ours = [entry for entry in entries if entry.name.startswith((PREFIX, _IN_THE_MAKING))]
    return sum(_abandoned(entry) and remove_tree(entry.path) for entry in ours)


def _abandoned(entry: os.DirEntry[str]) -> bool:
    """True when it is ours and no living process holds its lock, or it was never finished."""
    try:
        about = entry.stat(follow_symlinks=False)
        if about.st_uid != os.geteuid() or not stat.S_ISDIR(about.st_mode):
            return False
        if entry.name.startswith(_IN_THE_MAKING):
            return time.time() - about.st_mtime > _OLD_S
        fd = os.open(os.path.join(entry.path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
