"""Access to single recorded episodes by file and position, compressed or not.

`episodes/000003.jsonl` grows; when it is rotated its lines keep their positions in `000003.jsonl.gz`, unless
files of killed attempts went into the same packed file before it.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from agentrl.storage.durable import record_of

CACHE_BYTES = 256 << 20
"""Unpacked bytes of a compressed file that are kept for the next episode of it."""


def lines_of(path: Path, start: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(position after it, record or None where it is damaged) of each complete line of a plain file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield start, record_of(line)
    except OSError:
        return


def newest_records(folder: Path, count: int, tail: int = 1 << 20) -> list[dict[str, Any]]:
    """The last whole episodes that a run wrote, oldest first; at most those in the last `tail` bytes."""
    files = sorted(folder.glob("[0-9]*.jsonl"))
    if not files:
        return []
    try:
        with files[-1].open("rb") as file:
            file.seek(max(0, files[-1].stat().st_size - tail))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    records = (record_of(line) for line in lines[-count - 2 :])
    return [record for record in records if record and "episode_id" in record][-count:]


class RecordFiles:
    """The files of `episodes/` of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._unpacked: tuple[tuple[str, int], bytes] | None = None

    def _path(self, number: int) -> Path | None:
        plain = self._folder / f"{number:06d}.jsonl"
        packed = plain.with_suffix(".jsonl.gz")
        return plain if plain.exists() else packed if packed.exists() else None

    def unread(self, known: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, bool, int]]:
        """(number, whether it is packed, position to read from) of files that may hold something new."""
        numbers = sorted({int(path.name[:6]) for path in self._folder.glob("[0-9]*.jsonl*")})
        # A file that was seen plain and has gone was packed into the next one, which moves positions there.
        moved = [number for number, row in known.items() if not row["packed"] and number not in numbers]
        for number in numbers:
            path = self._path(number)
            if path is None:
                continue
            packed, row = path.suffix == ".gz", known.get(number)
            if row is None or (packed and not row["packed"] and any(other < number for other in moved)):
                yield number, packed, 0
            elif not (packed and row["packed"]):
                yield number, packed, row["position"]

    def records(self, number: int, start: int) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """(begin, end, record or None where damaged) of each complete line from a position on."""
        path = self._path(number)
        if path is None:
            return
        try:
            with self._opened(path) as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    yield start, start + len(line), record_of(line)
                    start += len(line)
        except (OSError, EOFError, zlib.error):
            return  # the rest is damaged

    def read(self, identity: str, number: int, position: int) -> dict[str, Any] | None:
        """One recorded episode; None where its file is gone or damaged."""
        for _ in range(2):  # it may be packed between looking and opening
            found = self._line(number, position)
            record = None if found is None else record_of(found)
            if record is not None and record.get("episode_id") == identity:
                return record
        return None

    def _line(self, number: int, position: int) -> bytes | None:
        path = self._path(number)
        try:
            if path is None:
                return None
            if path.suffix == ".gz":
                data = self._unpack(path)
                end = data.find(b"\n", position)
                return None if end < 0 else data[position:end]
            with path.open("rb") as file:
                file.seek(position)
                return file.readline()
        except (OSError, EOFError, zlib.error):
            return None

    def _unpack(self, path: Path) -> bytes:
        """The content of a packed file, as far as it can be read; the newest one asked for is kept."""
        key = (path.name, path.stat().st_size)
        with self._lock:
            if self._unpacked is not None and self._unpacked[0] == key:
                return self._unpacked[1]
            unpacker = zlib.decompressobj(wbits=31)
            try:
                data = unpacker.decompress(path.read_bytes())
            except zlib.error:
                data = b"".join(self._pieces(path))
            self._unpacked = (key, data) if len(data) <= CACHE_BYTES else None
            return data

    @staticmethod
    def _pieces(path: Path) -> Iterator[bytes]:
        """A damaged file up to the damage."""
        unpacker = zlib.decompressobj(wbits=31)
        with path.open("rb") as file:
            while piece := file.read(1 << 12):
                try:
                    yield unpacker.decompress(piece)
                except zlib.error:
                    return

    @staticmethod
    def _opened(path: Path) -> BinaryIO:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
