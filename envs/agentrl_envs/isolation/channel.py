"""Questions and answers between two processes, over one socket; either side may ask.

A frame is the length of a JSON object (4 bytes, big endian) and the object. `{"ask": 7, "do": "call", ...}`
is answered by `{"to": 7, "value": ...}` or `{"to": 7, "error": {...}}`; `{"do": ...}` alone is not
answered. One thread reads and another writes: a question may be asked from an event loop and from any other
thread, and a peer that reads no more blocks nobody. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from ..errors import EnvError
from ..plain import plain

__all__ = ["MOST_MB", "PROTOCOL", "Channel"]

PROTOCOL = 1
MOST_MB = 256
"""Largest frame; a peer that announces a larger one speaks something else."""

Frame = dict[str, Any]


class Channel:
    """One side of a connection.

    Args:
        peer: a connected stream socket; the channel closes it.
        serve: is given each question, in the reading thread; it must return at once.
        lost: is called once, in that thread, when the connection has ended.
        name: of the reading thread.
    """

    def __init__(
        self, peer: socket.socket, serve: Callable[[Frame], None], lost: Callable[[], None], name: str
    ) -> None:
        self._peer, self._serve, self._lost = peer, serve, lost
        self._waiting: dict[int, Future[Any]] = {}
        self._count = 0
        self._state = threading.Lock()
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.open = True
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)
        self._thread.start()
        threading.Thread(target=self._write, name=f"{name}-out", daemon=True).start()

    def ask(self, do: str, **given: Any) -> Future[Any]:
        """The answer to a question, when it comes. Its error is what the other side raised."""
        future: Future[Any] = Future()
        with self._state:
            if not self.open:
                future.set_exception(ConnectionError("the connection has ended"))
                return future
            self._count += 1
            number = self._count
            self._waiting[number] = future
        try:
            self._send({"ask": number, "do": do, **given})
        except EnvError:
            with self._state:
                self._waiting.pop(number, None)
            raise
        return future

    def tell(self, do: str, **given: Any) -> None:
        """Say something that is not answered; a connection that has ended is no error."""
        self._send({"do": do, **given})

    def answer(self, number: int, value: Any = None, error: Mapping[str, Any] | None = None) -> None:
        """Answer a question; a connection that has ended is no error."""
        self._send({"to": number, "value": value, "error": error})

    def close(self) -> None:
        """End the connection; what was asked fails."""
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _send(self, frame: Frame) -> None:
        try:
            body = json.dumps(frame).encode()
        except (TypeError, ValueError):
            body = json.dumps(plain(frame)).encode()
        if len(body) > MOST_MB << 20:
            raise EnvError(f"{len(body) >> 20} MB for the other process of an environment; at most {MOST_MB}")
        self._frames.put(struct.pack("!I", len(body)) + body)

    def _write(self) -> None:
        # A connection that has ended is told to who waits by the reading thread.
        with contextlib.suppress(OSError):
            while (frame := self._frames.get()) is not None:
                self._peer.sendall(frame)

    def _read(self) -> None:
        try:
            with self._peer.makefile("rb", buffering=1 << 16) as stream:
                while len(head := stream.read(4)) == 4:
                    size = struct.unpack("!I", head)[0]
                    if size > MOST_MB << 20:
                        break
                    body = stream.read(size)
                    if len(body) < size:
                        break
                    self._take(json.loads(body))
        except (OSError, ValueError):
            pass
        finally:
            with self._state:
                self.open = False
                waiting, self._waiting = self._waiting, {}
            self._frames.put(None)
            self._peer.close()
            self._lost()
            for future in waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the connection has ended"))

    def _take(self, frame: Frame) -> None:
        if "to" not in frame:
            self._serve(frame)
            return
        with self._state:
            future = self._waiting.pop(frame["to"], None)
        # One that nobody waits for any more was cancelled.
        if future is None or not future.set_running_or_notify_cancel():
            return
        if frame.get("error") is not None:
            future.set_exception(Refused(frame["error"]))
        else:
            future.set_result(frame.get("value"))


class Refused(Exception):
    """The other side raised; `error` is how it told that."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", error)))
        self.error = error
