"""The wire protocol as the host speaks it: frames of a header and blobs, and a line that carries them."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

_HEAD = struct.Struct("!I")


class Lost(Exception):
    """The stream from the supervisor ended or carries nonsense."""


class Line(asyncio.BufferedProtocol):
    """Frames from and to one supervisor."""

    def __init__(self, largest: int):
        self._largest, self._buffer = largest, bytearray()
        self._space = memoryview(bytearray(65536))
        self._waiter: asyncio.Future[None] | None = None
        self._frames: list[tuple[dict[str, Any], list[bytes]]] = []
        self.lost: str | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.BaseProtocol."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Of asyncio.BufferedProtocol: the same space every time."""
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio.BufferedProtocol."""
        self.data_received(self._space[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data
        try:
            self._take()
        except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
            self.connection_lost(None, f"a frame that cannot be read: {error}")

    def connection_lost(self, exc: Exception | None, reason: str = "the stream ended") -> None:
        """Of asyncio.BaseProtocol."""
        self.lost = self.lost or (str(exc) if exc else reason)
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def send(self, header: dict[str, Any], blobs: tuple[bytes, ...] = ()) -> None:
        """Send one frame."""
        if self.transport is None or self.lost:
            raise Lost(self.lost or "not connected")
        self.transport.write(encode_frame(header, blobs))

    async def receive(self) -> tuple[dict[str, Any], list[bytes]]:
        """The next frame. Raises Lost. Who is cancelled, in whatever moment, takes no frame along."""
        while not self._frames:
            if self.lost:
                raise Lost(self.lost)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._frames.pop(0)

    def close(self) -> None:
        """Hang up."""
        if self.transport is not None:
            self.transport.abort()

    def _take(self) -> None:
        buffer = self._buffer
        while len(buffer) >= 4:
            (length,) = _HEAD.unpack_from(buffer)
            if length > self._largest:
                raise ValueError(f"{length} bytes in one frame")
            if len(buffer) < 4 + length:
                return
            frame = decode_frame(bytes(buffer[4 : 4 + length]))
            del buffer[: 4 + length]
            if len(self._frames) >= 4:
                raise ValueError("frames that nobody asked for")
            self._frames.append(frame)
            self._wake()


def encode_frame(header: dict[str, Any], blobs: tuple[bytes, ...] = ()) -> bytes:
    """One frame of the wire protocol (`inside/frames.py`)."""
    head = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    size = 4 + len(head) + sum(map(len, blobs))
    return b"".join((_HEAD.pack(size), _HEAD.pack(len(head)), head, *blobs))


def decode_frame(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """`(header, blobs)`; ValueError when the lengths do not agree."""
    (head,) = _HEAD.unpack_from(body)
    end = 4 + head
    header = json.loads(str(body[4:end], "utf-8"))
    if not isinstance(header, dict) or not isinstance(header.get("blobs", []), list):
        raise ValueError("a header that is no object")
    blobs = []
    for length in header.get("blobs", []):
        if not isinstance(length, int) or length < 0 or end + length > len(body):
            raise ValueError("blobs longer than their frame")
        blobs.append(body[end : end + length])
        end += length
    if end != len(body):
        raise ValueError("a frame longer than its blobs")
    return header, blobs
