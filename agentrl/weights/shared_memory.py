"""Folders in shared memory through which weights pass to engines of the same machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "agentrl-weights-"


def weights_folder(root: Path | None = None) -> Path:
    """A new folder for weights, in shared memory where there is some; it is the caller's to delete.

    What processes that were killed left behind is deleted first: it is memory.
    """
    root = root or (SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None)
    for folder in root.glob(f"{_PREFIX}*-*") if root is not None else ():
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))
