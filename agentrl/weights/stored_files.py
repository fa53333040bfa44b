"""Files of weights as bytes, for the object store of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """One file of weights, or those of a folder, in the object store."""

    names: tuple[str, ...]
    references: tuple[Any, ...]
    """To arrays of bytes, one for each name."""


def read_files(path: Path) -> tuple[tuple[str, ...], list[NDArray[np.uint8]]]:
    """Names and bytes of a file, or of the files of a folder."""
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    return tuple(file.name for file in files), [np.fromfile(file, dtype=np.uint8) for file in files]
