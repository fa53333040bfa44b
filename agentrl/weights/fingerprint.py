"""Tells one set of weights from another without reading gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(path: str) -> str:
    """sha256 over names, sizes and both ends (1 MiB each) of the weight files of a folder.

    Tells two checkpoints of one training run apart without reading gigabytes; empty for a hub id.
    """
    folder = Path(path)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder.is_dir() else []
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            digest.update(data.read(1 << 20))
            data.seek(max(0, size - (1 << 20)))
            digest.update(data.read())
    return digest.hexdigest()
