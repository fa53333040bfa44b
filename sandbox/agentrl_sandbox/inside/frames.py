"""Frames between the host and a supervisor, and buffers that can be wiped. Standard library only.

The wire protocol, over one byte stream (in a container stdin and stdout, which the supervisor moves to other
descriptors at once, so that the program never holds them):

    frame   = u32 length of payload, payload                                     (big endian)
    payload = u32 length of header, header (JSON object, UTF-8), blobs one after another
    header["blobs"] = lengths of the blobs

host to supervisor:
    {"kind": "start", "limits": {...Limits}, "seed": int|null, "paths": [library directories],
     "directory": working directory, "environment": {...},
     "alone": true when the session owns its pid namespace (a kill then takes every process in it),
     "limit_processes": set RLIMIT_NPROC, "watch_memory": no control group limits memory: poll and kill,
     "watch_files": directory whose size nothing else limits: poll and kill}
    {"kind": "run", "id": 32 hex digits, "time_s": float, "blobs": [source code UTF-8, stdin UTF-8]}
    {"kind": "interrupt", "id": ...}      the caller has gone: interrupt the run, kill it after the grace
    {"kind": "rest"}                      kill every process but the supervisor and forget what passed; exit
                                          unless the room is as it was before the first program ("alone" only)
    {"kind": "again"}                     after "rest": a fresh interpreter, answered like "start"
    end of stream                         kill everything and exit
supervisor to host:
    {"kind": "ready", "python": "3.11.2", "pid": int}
    {"kind": "result", "id": ..., "interrupted": bool,
     "cause": null|"time"|"memory"|"files"|"protocol"|"cancelled",
     "wait_status": null | status of wait(2) of the interpreter, when it is dead, "alive": bool,
     "cpu_s": float, "truncated": bool,
     "blobs": [what the interpreter says (JSON, untrusted; may be empty), stdout bytes, stderr bytes]}
    After a result with "alive": false the supervisor exits. {"kind": "failed", "reason": text} replaces
    "ready" when the interpreter could not be started.

What the interpreter says: {"kind": "ok"|"error"|"exit", "value": text|null, "error": text|null,
"exit_code": int|null, "files": [[name, size], ...], "notes": [text, ...], "restart": text|null}; "restart"
says why the interpreter cannot go on, and the host then ends the session. Between supervisor and interpreter:
u32 length, 16 bytes request id, then for a request u32 length of code, code, stdin; for a reply the JSON. A
reply with another id, a second reply, or one that is too long costs the session its life ("protocol").
"""

from __future__ import annotations

import ctypes
import json
import struct
from os import read, readv, write, writev

BUFFER = 16384
"""Bytes that a buffer has at first."""
LINE_LOST = 117
"""Exit code of an interpreter whose line to its supervisor is broken."""


def write_all(fd, data):
    """Write every byte of `data`; the descriptor blocks."""
    view = memoryview(data)
    while view:
        view = view[write(fd, view) :]


def read_exactly(fd, count):
    """Read `count` bytes; EOFError at the end of the stream."""
    parts = []
    while count:
        part = read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError("the other end has gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_into(fd, view):
    """Read what there is into a memoryview; returns how many bytes, EOFError at the end of the stream."""
    count = readv(fd, [view])
    if not count:
        raise EOFError("the other end has gone")
    return count


def write_vector(fd, buffers):
    """Write every byte of all buffers, without joining them; the descriptor blocks."""
    written = writev(fd, buffers)
    for buffer in buffers:
        if written < len(buffer):
            write_all(fd, memoryview(buffer)[written:])
            written = 0
        else:
            written -= len(buffer)


def send_frame(fd, header, blobs=()):
    """Send one frame of the wire protocol; a blob is a list of buffers."""
    lengths = [sum(map(len, blob)) for blob in blobs]
    head = json.dumps({**header, "blobs": lengths}).encode()
    size = struct.pack("!II", 4 + len(head) + sum(lengths), len(head))
    write_vector(fd, [size, head, *(buffer for blob in blobs for buffer in blob)])


def receive_frame(fd):
    """Receive one frame: `(header, blobs)`."""
    return split_frame(read_exactly(fd, struct.unpack("!I", read_exactly(fd, 4))[0]))


def split_frame(body):
    """`(header, blobs)` of a payload; the blobs are slices of it."""
    end = 4 + struct.unpack_from("!I", body)[0]
    header = json.loads(str(body[4:end], "utf-8"))
    blobs = []
    for length in header.get("blobs", ()):
        blobs.append(body[end : end + length])
        end += length
    return header, blobs


class Inbox:
    """Reads frames into one buffer, which can be wiped."""

    def __init__(self, fd):
        self.fd = fd
        self.buffer = memoryview(bytearray(BUFFER))
        self.filled = 0

    def read(self):
        """Read what there is; EOFError at the end of the stream."""
        if self.filled == len(self.buffer):
            self._grow(2 * self.filled)
        self.filled += read_into(self.fd, self.buffer[self.filled :])

    def take(self):
        """The next whole payload, valid until `drop`; None when there is none."""
        if self.filled < 4:
            return None
        end = 4 + struct.unpack_from("!I", self.buffer)[0]
        if end > len(self.buffer):
            self._grow(end)
        return self.buffer[4:end] if self.filled >= end else None

    def drop(self):
        """Forget the payload that was taken."""
        end = 4 + struct.unpack_from("!I", self.buffer)[0]
        self.buffer[: self.filled - end] = self.buffer[end : self.filled]
        self.filled -= end

    def wipe(self):
        """Overwrite all that was dropped."""
        wipe(self.buffer[self.filled :])

    def _grow(self, size):
        larger = memoryview(bytearray(size))
        larger[: self.filled] = self.buffer[: self.filled]
        wipe(self.buffer)
        self.buffer = larger


def wipe(buffer):
    """Overwrite a buffer where it lies."""
    if not buffer.readonly and len(buffer):
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), 0, len(buffer))
