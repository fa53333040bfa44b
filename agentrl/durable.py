"""Writes that survive the death of the process: appended lines, and files replaced whole.

An appended line reaches the kernel in one `write`, so a SIGKILL loses at most a line that was being
written; a reader drops a torn last line. A replaced file is complete or absent. Every durable write
passes two named kill points, so that tests can kill a run exactly there. Knows nothing of what is written.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentrl.errors import DiskError

KILL_POINT = "AGENTRL_KILL_POINT"
"""Environment variable `NAME:N`: the process kills itself at the N-th passage of kill point NAME (tests)."""

_passages: dict[str, int] = {}


def kill_point(name: str) -> None:
    """Die here by SIGKILL when a test asked for it; otherwise do nothing."""
    wanted = os.environ.get(KILL_POINT)
    if not wanted:
        return
    _passages[name] = _passages.get(name, 0) + 1
    wanted_name, _, count = wanted.rpartition(":")
    if name == wanted_name and _passages[name] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)


class LineFile:
    """A file of JSON lines, only ever appended to.

    Args:
        path: created when absent; a torn last line of a killed writer is cut off.
        name: of its kill points, `<name>.before` and `<name>.after`.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._name = name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.size = _cut_torn_line(self._descriptor)

    def append(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            DiskError: the disk is full or gone; nothing of the line stays.
        """
        self.append_all((record,))

    def append_all(self, records: tuple[dict[str, Any], ...]) -> None:
        """Append several records in one write."""
        if not records:
            return
        data = b"".join(
            json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n" for record in records
        )
        kill_point(f"{self._name}.before")
        written = 0
        try:
            # A short write means the disk filled up in the middle: either the rest fits or nothing stays.
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, self.size)
            raise DiskError(self.path, error) from error
        self.size += written
        kill_point(f"{self._name}.after")

    def sync(self) -> None:
        """Flush to the disk, so that a power cut loses nothing either."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _cut_torn_line(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        chunk = os.pread(descriptor, end - start, start)
        newline = chunk.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def read_lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
    """Records of a file of JSON lines from byte `start` to `end`; a torn last line is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if not line.endswith(b"\n") or (end is not None and start > end):
                return
            yield json.loads(line)


def write_file(path: Path, data: bytes | Iterable[bytes], name: str) -> None:
    """Replace a file whole: readers see the old content or the new one, never a part.

    Args:
        path: of the file; its folder is made when absent.
        data: the content, or pieces of it in order.
        name: of its kill points, `<name>.before` and `<name>.after`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        kill_point(f"{name}.before")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    kill_point(f"{name}.after")


def replace_folder(temporary: Path, final: Path, name: str) -> None:
    """Give a folder that was written under a temporary name its final name, after flushing its files.

    An existing `final` is moved aside first and deleted last; readers take only names they know to be final.
    """
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(temporary)
    kill_point(f"{name}.before")
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)
    kill_point(f"{name}.after")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
