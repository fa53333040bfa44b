"""Folders in shared memory through which weights pass to engines of the same machine."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "agentrl-weights-"


def weights_folder(root: Path = SHARED_MEMORY, *, room: int = 0) -> Path:
    """A new folder for weights, which is the caller's to delete.

    Where shared memory is missing or too small, as it is in many containers, it is among the temporary
    files, and a warning says so. What processes that were killed left behind is deleted first: it is memory.
    Of processes of other containers, which may have the same shared memory (`--ipc=host`), nothing is known,
    and nothing deleted.

    Args:
        root: where it shall be.
        room: bytes that will be written there.
    """
    prefix = f"{_PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-"
    for folder in root.glob(f"{prefix}*-*"):
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(root).free if os.access(root, os.W_OK) else 0
    other = Path(tempfile.gettempdir())
    if (free >= room and free) or root == other:
        return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))
    logger.warning(
        "weights pass through files in %s: they need %d MB, and %s has %d MB free; to keep them off the "
        "disk, make it larger (docker run --shm-size, or mount -o remount,size=...) or learn an adapter",
        other, -(-room // 10**6), root, free // 10**6,
    )  # fmt: skip
    return weights_folder(other)
