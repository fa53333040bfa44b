"""Removal of directories that programs have left: of any depth, closed, with names of any length.

Knows nothing of sandboxes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> bool:
    """Remove a directory and all below it; False when something stayed. Never raises OSError.

    A directory inside of a directory is moved up to the top before its turn comes. So the tree is never
    deeper than two levels, whatever its depth was: nothing to recur into, no path too long.
    """
    try:
        top = _open(path, None)
    except OSError:
        return not os.path.lexists(path)
    try:
        while names := os.listdir(top):
            if not sum(_remove(name, top) for name in names):
                return False
    except OSError:
        return False
    finally:
        os.close(top)
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def _remove(name: str, top: int) -> bool:
    """Remove one entry of the top directory; what is in it and is a directory becomes an entry of the top."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=top)
            return True
        inner = _open(name, top)
        try:
            for child in os.listdir(inner):
                _take_out(child, inner, top)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)
    except OSError:
        return False
    return True


def _take_out(child: str, inner: int, top: int) -> None:
    if stat.S_ISDIR(os.stat(child, dir_fd=inner, follow_symlinks=False).st_mode):
        os.close(_open(child, inner))  # moving a directory changes it: it must be its owner's to write
        os.rename(child, f".removed-{secrets.token_hex(8)}", src_dir_fd=inner, dst_dir_fd=top)
    else:
        os.unlink(child, dir_fd=inner)


def _open(name: str, parent: int | None) -> int:
    """A directory, opened to its owner where the program closed it."""
    if parent is not None or not os.path.islink(name):
        with contextlib.suppress(PermissionError):  # of another user: perhaps it is open
            os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, _DIRECTORY, dir_fd=parent)
