"""Writes finished episodes to disk off the event loop, and reads them back.

`episodes/000001.jsonl` holds one episode a line and is only appended to; `rotate` starts the next
file and compresses the old one. An episode counts as finished once its line is written, so whatever
the ledger calls finished can be read back. It knows nothing of what becomes of episodes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrl.episode import Episode
from agentrl.errors import StallError
from agentrl.storage.durable import LineFile, write_file

Callback = Callable[[], None]
_Item = tuple[Episode | None, Callback, float]
logger = logging.getLogger(__name__)

CLOSE_LIMIT_S = 60.0
"""Longest wait for the disk when the recorder is closed."""


class EpisodeRecorder:
    """Appends episodes in a thread of its own.

    Args:
        folder: `episodes/` of the run.
        keep: newest episodes kept on disk, at least those since the last two rotations; 0 keeps
            only what a resumed run may need.
    """

    def __init__(self, folder: Path, *, keep: int = 20000) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep = folder, keep
        numbers = [int(path.name.split(".")[0]) for path in folder.glob("[0-9]*.jsonl*")]
        self._number = max(numbers, default=0) + 1
        self._file = LineFile(self._path(self._number), "episode")
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._on_error: Callable[[Exception], None] = lambda error: None
        self._broken = False
        self._lines: dict[str, int] = {}  # of the packed files
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="agentrl-recorder", daemon=True)
        self._thread.start()

    def on_error(self, handler: Callable[[Exception], None]) -> None:
        """Call `handler` in the event loop when an episode cannot be written, or its callback raises."""
        self._on_error = handler

    def record(self, episode: Episode, written: Callback) -> None:
        """Write an episode; `written` is called in the event loop once it is on disk, in order."""
        self._queue.put((episode, written, time.time()))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.jsonl"

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            items = [item]
            # Taking what has piled up makes one write of many episodes.
            while len(items) < 64:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._queue.put(None)
                    break
                items.append(more)
            self._write(items)

    def _write(self, items: list[_Item]) -> None:
        if not self._broken:
            try:
                with self._lock:
                    self._file.append_all(
                        tuple(_record(episode, ended) for episode, _, ended in items if episode is not None)
                    )
            except Exception as error:  # whatever it is ends the run, in its own words
                self._broken = True
                self._loop.call_soon_threadsafe(self._on_error, error)
        for episode, written, _ in items:
            # After a failed write nothing counts as written, but `flush` must not wait for ever.
            if not self._broken or episode is None:
                self._loop.call_soon_threadsafe(self._call, written)

    def _call(self, written: Callback) -> None:
        try:
            written()
        except Exception as error:  # handed on: a callback's failure ends the run
            self._on_error(error)

    def rotate(self) -> None:
        """Start a new file; compress the one before and delete the oldest beyond `keep`."""
        with self._lock:
            old = self._file
            if old.size == 0:
                return
            self._number += 1
            self._file = LineFile(self._path(self._number), "episode")
        old.close()
        # Files of attempts that were killed go with it: one packed file for all since the last rotation.
        plain = [path for path in sorted(self._folder.glob("[0-9]*.jsonl")) if path <= old.path]
        write_file(old.path.with_suffix(".jsonl.gz"), _packed(plain), "rotate")
        for path in plain:
            path.unlink()
        self._delete_old()

    def _delete_old(self) -> None:
        files = sorted(self._folder.glob("[0-9]*.jsonl.gz"), reverse=True)
        count = 0
        for place, path in enumerate(files):
            # A resumed run needs what was finished since the checkpoint before the newest one.
            if place >= 4 and count >= self._keep:
                path.unlink()
                continue
            if path.name not in self._lines:
                self._lines[path.name] = _count_lines(path)
            count += self._lines[path.name]

    async def flush(self) -> None:
        """Return once everything recorded so far is on disk and its callbacks have run.

        The caller sets a limit.
        """
        done = asyncio.Event()
        if self._thread.is_alive():
            # The queue is in order, and callbacks are too: a marker of our own is the last of them.
            self._queue.put((None, done.set, 0.0))
            await done.wait()

    async def close(self, limit_s: float = CLOSE_LIMIT_S) -> None:
        """Write what is left and stop.

        Raises:
            StallError: the disk did not take it within the limit.
        """
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, limit_s)
        if self._thread.is_alive():
            raise StallError(f"the disk to write episodes to {self._file.path}", limit_s)
        await asyncio.sleep(0)
        self._file.close()


def _record(episode: Episode, ended: float) -> dict[str, Any]:
    """The form on disk, with the time of its end: seconds since 1970, for people who look at a run."""
    return {**episode.to_json(), "ended": round(ended, 3)}


def _packed(paths: Sequence[Path]) -> Iterator[bytes]:
    """The complete lines of files, one after the other, as one gzip stream; a piece at a time."""
    packer = zlib.compressobj(5, wbits=31)  # 31: with the header of gzip
    for path in paths:
        LineFile(path, "episode").close()  # cuts off a line torn by a kill
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield packer.compress(piece)
    yield packer.flush()


def _count_lines(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def read_episodes(folder: Path, wanted: Collection[str] | None = None) -> Iterator[Episode]:
    """Recorded episodes, oldest file first; what a kill, a power cut or the disk has damaged is left out.

    Args:
        folder: `episodes/` of a run.
        wanted: episode ids to read; None reads all.
    """
    for path in sorted(folder.glob("[0-9]*.jsonl*"), key=lambda path: path.name.split(".")[0]):
        for data in read_records(path):
            try:
                if wanted is None or data["episode_id"] in wanted:
                    yield Episode.from_json(data)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s: an episode is damaged and left out: %r", path, error)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Recorded episodes of one file as plain values; what is damaged is left out."""
    for line in _lines(path):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, dict):
            yield data
        else:
            logger.warning("%s: an episode is damaged and left out: %r", path, line[:60])


def _lines(path: Path) -> Iterator[bytes]:
    """The complete lines of a file, as far as it can be read."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    except (OSError, EOFError, zlib.error) as error:
        logger.warning("%s is damaged, and its rest is left out: %s", path, error)
