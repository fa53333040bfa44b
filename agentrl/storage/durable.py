"""Writes that survive the death of the process: appended lines, and files replaced whole.

An appended line reaches the kernel in one `write`, so a SIGKILL loses at most a line that was being
written; a reader drops a torn last line. A replaced file is complete or absent. Every durable write
passes two named kill points, so that tests can kill a run exactly there. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentrl.errors import AgentRLError, DataError, DiskError
from agentrl_envs.plain import write_json

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
        path: created when absent; last lines that a kill or a power cut has torn are cut off.
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
        data = b"".join(write_json(record).encode() + b"\n" for record in records)
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
    end = _line_start(descriptor, size)  # after the last line break
    while end > 0:
        # A power cut may leave a line of zeros, or half of one and a whole one behind it.
        start = _line_start(descriptor, end - 1)
        if record_of(os.pread(descriptor, end - start, start)) is not None:
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _line_start(descriptor: int, end: int) -> int:
    """Where the line begins that ends at `end`."""
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def record_of(line: bytes) -> dict[str, Any] | None:
    """The record of a line, None where it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_lines(
    path: Path, start: int = 0, end: int | None = None, *, skip_damaged: bool = False
) -> Iterator[dict[str, Any]]:
    """Records of a file of JSON lines from byte `start` to `end`; a torn last line is left out.

    Raises:
        DataError: a line before the last is damaged, unless those are skipped.
    """
    if not path.exists():
        return
    position = start
    with path.open("rb") as file:
        file.seek(start)
        for number, line in enumerate(file, 1):
            position += len(line)
            if not line.endswith(b"\n") or (end is not None and position > end):
                return
            record = record_of(line)
            if record is not None:
                yield record
            elif not skip_damaged:
                where = f"line {number}" + (f" after byte {start}" if start else "")
                raise DataError(f"{path}, {where}, is damaged: {line[:60]!r}")


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


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write in that gets the name `final` in the end; one that cannot be written goes.

    What else lies in an existing `final` stays there.

    Raises:
        AgentRLError: the disk refused; says so in one sentence.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        if final.exists():
            shutil.copytree(final, temporary)
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace_folder(temporary, final, "folder")
    except Exception as error:
        # safetensors has an error of its own for files, and copytree's is a list of all files.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise AgentRLError(
            f"cannot write {final}: {str(error)[:300]}; nothing of it is kept: free some space and run the "
            "same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
