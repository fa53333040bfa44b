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

    What processes that were killed left behind is deleted first: it is memory. Of processes of other
    containers, which may have the same shared memory (`--ipc=host`), nothing is known, and nothing deleted.
    """
    root = root or (SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None)
    prefix = f"{_PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-"
    for folder in root.glob(f"{prefix}*-*") if root is not None else ():
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))
